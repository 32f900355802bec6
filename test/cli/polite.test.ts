import * as fs from 'node:fs';
import * as path from 'node:path';
import { execa } from 'execa';
import { afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { findProcesses } from '../../src/host/process-list.js';
import { TestChunkmount } from '../support/chunkmount.js';
import { noise } from '../support/images.js';
import { fuseDevice, program, requireAll, root } from '../support/requirements.js';
import { eventually, expectError } from './expectations.js';

const MIB = 1024 * 1024;
const CHUNK = 64 * 1024;

/** Field 19 of /proc/PID/stat, see proc_pid_stat(5). */
function niceOf(stat: string): number {
  return Number(stat.slice(stat.lastIndexOf(')') + 2).split(' ')[16]);
}

describe('the daemon', () => {
  let chunkmount: TestChunkmount;
  let given: string[];

  beforeAll(() =>
    requireAll(root, fuseDevice, program('qemu-img', 'qemu-utils'), program('ionice', 'util-linux')),
  );
  beforeEach(() => {
    chunkmount = new TestChunkmount();
    const image = chunkmount.path('disk.raw');
    fs.writeFileSync(image, noise(8 * MIB, 1));
    given = [`--image=${image}`, '--name=demo', `--chunk-size=${CHUNK / 1024}K`];
  });
  afterEach(() => chunkmount.close());

  /** Keeps the scanners from ending while somebody looks at them. */
  const slowly = '--bwlimit=64K';

  /** Nice values and I/O priorities of all threads of the processes that serve the session. */
  async function priorities(matches: (argv: readonly string[]) => boolean) {
    const found = findProcesses(matches);
    expect(found.length).toBe(1);
    const tasks = `/proc/${found[0]!.pid}/task`;
    const threads = fs.readdirSync(tasks);
    const nice = threads.map((thread) => niceOf(fs.readFileSync(`${tasks}/${thread}/stat`, 'latin1')));
    const { stdout } = await execa('ionice', ['-p', ...threads], { env: { LC_ALL: 'C' } });
    return { threads: threads.length, nice: [...new Set(nice)], ionice: [...new Set(stdout.split('\n'))] };
  }

  const daemon = (argv: readonly string[]) =>
    argv.at(-1) === path.join(chunkmount.stateDirectory, 'sessions/demo');

  it('gives way with all its threads', async () => {
    await chunkmount.succeed(...given, slowly, '--nice=7', '--ionice=best-effort:6');
    const found = await priorities(daemon);
    expect(found).toMatchObject({ nice: [7], ionice: ['best-effort: prio 6'] });
    expect(found.threads).toBeGreaterThan(3);
  });

  it('gives way together with the process that decodes an image', async () => {
    const image = chunkmount.path('disk.qcow2');
    // Noise would not be compressed.
    fs.writeFileSync(chunkmount.path('plain.raw'), Buffer.alloc(MIB, 'what can be made shorter '));
    await execa('qemu-img', ['convert', '-c', '-O', 'qcow2', chunkmount.path('plain.raw'), image]);
    await chunkmount.succeed(`--image=${image}`, '--name=demo', slowly, '--nice=19', '--ionice=idle');
    const expected = { nice: [19], ionice: ['idle'] };
    expect(await priorities(daemon)).toMatchObject(expected);
    const decoder = (argv: readonly string[]) =>
      argv[0] === 'qemu-storage-daemon' &&
      argv.some((argument) => argument.includes('sessions/demo/disk0.raw'));
    expect(await priorities(decoder)).toMatchObject(expected);
  });

  it('does not give way unless told', async () => {
    await chunkmount.succeed(...given, slowly);
    const { stdout } = await execa('ionice', ['-p', String(process.pid)], { env: { LC_ALL: 'C' } });
    const own = niceOf(fs.readFileSync('/proc/self/stat', 'latin1'));
    expect(await priorities(daemon)).toMatchObject({ nice: [own], ionice: [stdout.trim()] });
  });

  it('reads ahead at the rate that is given, and readers as fast as they can', async () => {
    const begun = performance.now();
    await chunkmount.succeed(...given, '--bwlimit=1M');
    const scanned = async () => {
      const { sessions } = JSON.parse(await chunkmount.succeed('list', '--json'));
      return sessions[0].daemon.scan.bytesRead as number;
    };
    let bytes = 0;
    await eventually(async () => {
      bytes = await scanned();
      return bytes > 1 * MIB;
    });
    const seconds = (performance.now() - begun) / 1000;
    // A thread that has paid reads at once.
    expect(bytes).toBeLessThan((seconds + 1) * MIB);
    const readingBegun = performance.now();
    const names = fs.readdirSync(`${chunkmount.tree('demo')}/disk0/000000`);
    for (const name of names) fs.statSync(`${chunkmount.tree('demo')}/disk0/000000/${name}`);
    expect(names.length).toBe((8 * MIB) / CHUNK);
    expect((performance.now() - readingBegun) / 1000).toBeLessThan(2.5);
  });

  it.each([
    ['--nice=20', /--nice=20 is not possible/],
    ['--nice=-5', /--nice=-5 is not possible/],
    ['--ionice=idle:3', /--ionice=idle:3 is not possible/],
    ['--ionice=best-effort:8', /--ionice=best-effort:8 is not possible/],
    ['--bwlimit=1', /--bwlimit=1 is not possible/],
    ['--bwlimit=fast', /--bwlimit=fast is not possible/],
    ['--audit=101%', /--audit=101% is no share/],
    ['--audit=half', /--audit=half is no share/],
    ['--full-scan-every=30', /--full-scan-every=30 is no time/],
    ['--track=magic', /--track=magic is not possible/],
  ])('refuses %s', async (option, message) => {
    expect(expectError(await chunkmount.run([...given, option]), 2).message).toMatch(message);
  });
});
