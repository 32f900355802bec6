import * as fs from 'node:fs';
import * as path from 'node:path';
import { run } from '../../src/host/exec.js';

const BUILD = path.resolve(import.meta.dirname, '../../build');

/**
 * What code asks the kernel to bring to the disk or to rename, in order, with `.` for `directory` and without the numbers of
 * descriptors. It imports ours from `build/…`. A crash test does not notice what is missing there: what a killed process wrote stays.
 * Needs strace, and the build.
 */
export async function durableCalls(directory: string, code: string): Promise<string[]> {
  const script = path.join(directory, 'script.mjs');
  const trace = path.join(directory, 'trace');
  fs.writeFileSync(script, code.replaceAll("'build/", `'${BUILD}/`));
  const filter = 'trace=fsync,fdatasync,rename,renameat2,mkdir,mkdirat';
  await run('strace', ['-f', '-y', '-e', filter, '-o', trace, process.execPath, script], { cwd: directory });
  return fs
    .readFileSync(trace, 'utf8')
    .split('\n')
    .filter((line) => line.includes(directory))
    .map((line) =>
      line
        .replace(/^\d+ +/, '')
        .replaceAll(directory, '.')
        .replace(/ = .*/, '')
        // Another thread was shown meanwhile.
        .replace(/ <unfinished \.\.\.>$/, ')')
        .replace(/\(\d+</, '(<'),
    );
}
