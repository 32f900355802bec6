import { execFile } from 'node:child_process';
import * as fs from 'node:fs';
import * as path from 'node:path';
import { expect, onTestFinished } from 'vitest';
import { run } from '../../src/host/exec.js';
import { mountAt } from '../../src/host/mountinfo.js';
import { findProcesses } from '../../src/host/process-list.js';
import type { CliResult, TestChunkmount } from '../support/chunkmount.js';

/** The images of a tree, mounted by the real program. */
export interface MountedImages {
  readonly mountpoint: string;
  /** What the command printed. */
  readonly printed: string[];
  /** Path of a disk's image. */
  readonly image: (target: string) => string;
  /** What the daemon has said so far. */
  readonly log: () => string;
}

/** The process that serves a mountpoint. */
export function daemonOf(mountpoint: string) {
  return findProcesses(
    (argv) =>
      argv.some((one) => one.endsWith('/image-daemon.js')) &&
      argv.at(-1)?.includes(`"${mountpoint}"`) === true,
  );
}

/** Mounts the images of a tree until the test ends. */
export async function mountImages(
  chunkmount: TestChunkmount,
  tree: string,
  ...options: string[]
): Promise<MountedImages> {
  const mountpoint = fs.mkdtempSync(chunkmount.path('images-'));
  const log = `${mountpoint}.log`;
  onTestFinished(() => expectUnmount(chunkmount, mountpoint));
  const stdout = await chunkmount.succeed('image-mount', tree, mountpoint, `--log=${log}`, ...options);
  return {
    mountpoint,
    printed: stdout.split('\n').filter(Boolean),
    image: (target) => path.join(mountpoint, `${target}.img`),
    log: () => fs.readFileSync(log, 'utf8'),
  };
}

/** Unmounts what is still mounted; nothing may be left, then. */
async function expectUnmount(chunkmount: TestChunkmount, mountpoint: string): Promise<void> {
  if (mountAt(mountpoint) !== undefined) await chunkmount.succeed('image-unmount', mountpoint);
  expect(mountAt(mountpoint)).toBeUndefined();
  expect(daemonOf(mountpoint)).toEqual([]);
  expect(fs.readdirSync(mountpoint)).toEqual([]);
}

/** Whether two files have the same bytes. */
export async function same(a: string, b: string): Promise<boolean> {
  return (await run('cmp', ['--', a, b], { accept: [1] })).exitCode === 0;
}

/** Reads by system calls of another program, so that an image that hangs does not take the test with it. */
export function readAt(file: string, offset: number, length: number): Promise<Buffer> {
  const args = [`if=${file}`, `skip=${offset}`, `count=${length}`, 'iflag=skip_bytes,count_bytes', 'bs=4K'];
  const env = { ...process.env, LC_ALL: 'C' };
  const options = { encoding: 'buffer', env, timeout: 30_000, maxBuffer: 2 ** 26 } as const;
  return new Promise((resolve, reject) => {
    execFile('dd', [...args, 'status=none'], options, (error, stdout, stderr) => {
      if (error === null) resolve(stdout);
      else reject(new Error(stderr.toString().trim()));
    });
  });
}

/** What a command that failed must have done: that exit code, no result, one sentence, and on the next line what to do. */
export function expectError(result: CliResult, exitCode: number): { message: string; hint: string } {
  expect(result, result.stderr).toMatchObject({ exitCode, stdout: '' });
  const said = /(?:^|\n)chunkmount: error: ([^\n]*[^\n.])\n {2}(\S[^\n]*[^\n.])\n$/.exec(result.stderr);
  expect(said, `no sentence and hint: ${result.stderr}`).not.toBeNull();
  return { message: said![1]!, hint: said![2]! };
}

/** All data segments of a file, by SEEK_DATA and SEEK_HOLE, and what a seek to its end gives. */
const SEGMENTS = `import os, sys, json, errno
fd = os.open(sys.argv[1], os.O_RDONLY)
size, at, found = os.fstat(fd).st_size, 0, []
while True:
    try:
        start = os.lseek(fd, at, os.SEEK_DATA)
    except OSError as error:
        assert error.errno == errno.ENXIO
        break
    at = os.lseek(fd, start, os.SEEK_HOLE)
    found.append([start, at])
# From within data and holes, not only from their ends.
for start, end in found:
    middle = (start + end) // 2
    assert os.lseek(fd, middle, os.SEEK_DATA) == middle
    assert os.lseek(fd, middle, os.SEEK_HOLE) == end
try:
    os.lseek(fd, size, os.SEEK_HOLE)
    found.append('no ENXIO')
except OSError as error:
    assert error.errno == errno.ENXIO
print(json.dumps(found))`;

export async function segments(file: string): Promise<unknown> {
  return JSON.parse((await run('python3', ['-c', SEGMENTS, file])).stdout);
}
