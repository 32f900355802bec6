import * as fs from 'node:fs';
import * as path from 'node:path';
import { execa } from 'execa';
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest';
import { findProcesses } from '../../src/host/process-list.js';
import { TestChunkmount } from '../support/chunkmount.js';
import { loopDevices, noise, withLoopDevice } from '../support/images.js';
import { fuseDevice, program, requireAll, root } from '../support/requirements.js';
import { eventually, expectError, traces } from './expectations.js';

const KIB = 1024;

/** What users of other programs ran into with trees and images, one test each; those with VMs are in predecessors.test.ts. */
describe('what users of other programs ran into with trees', () => {
  const chunkmount = new TestChunkmount();
  const image = chunkmount.path('disk.raw');
  const tree = chunkmount.tree('demo');
  const copy = chunkmount.path('copy');
  const given = [`--image=${image}`, '--name=demo'];

  beforeAll(async () => {
    await requireAll(root, fuseDevice, loopDevices, program('rsync'), program('tar'));
    const content = noise(1024 * KIB, 9);
    // Chunks 4 and 5 of 64 KiB are zeros; 7 is what 6 is.
    content.fill(0, 4 * 64 * KIB, 6 * 64 * KIB);
    content.copy(content, 7 * 64 * KIB, 6 * 64 * KIB, 7 * 64 * KIB);
    fs.writeFileSync(image, content);
    const rsync = `rsync -a "$CHUNKMOUNT_TREE/" '${copy}/'`;
    await chunkmount.succeed('run', ...given, '--chunk-size=64K', '--', 'sh', '-c', rsync);
  });

  afterEach(async () => {
    const left = traces(chunkmount);
    if (left.length > 0) await chunkmount.run(['cleanup', '--all']);
    expect(left).toEqual([]);
  });

  afterAll(() => chunkmount.close());

  const chunk = (directory: string, number: number) =>
    path.join(directory, 'disk0/000000', number.toString(16).padStart(8, '0'));

  /** What restic and borg compare to know whether to read a file. */
  function statsOfChunks(): string[] {
    return Array.from({ length: 16 }, (_, number) => {
      const { ino, size, mtimeNs, ctimeNs } = fs.statSync(chunk(tree, number), { bigint: true });
      return [ino, size, mtimeNs, ctimeNs].join(' ');
    });
  }

  it('inodes and ctimes churned: they change with the content alone', async () => {
    const session = async <T>(work: () => T): Promise<T> => {
      await chunkmount.succeed(...given, '--chunk-size=64K');
      const result = work();
      await chunkmount.succeed('cleanup', '--name=demo');
      return result;
    };
    const before = await session(statsOfChunks);
    const fd = fs.openSync(image, 'r+');
    const old = Buffer.alloc(1);
    fs.readSync(fd, old, 0, 1, 3 * 64 * KIB);
    fs.writeSync(fd, Buffer.of(old[0]! ^ 1), 0, 1, 3 * 64 * KIB);
    const after = await session(statsOfChunks);
    expect(after.flatMap((stat, number) => (stat === before[number] ? [] : [number]))).toEqual([3]);
    expect(after[3]!.split(' ')[0]).toBe(before[3]!.split(' ')[0]);
    fs.writeSync(fd, old, 0, 1, 3 * 64 * KIB);
    fs.closeSync(fd);
  });

  it('deduplication was wanted: equal chunks are equal files, with equal sums', () => {
    expect(fs.readFileSync(chunk(copy, 7)).equals(fs.readFileSync(chunk(copy, 6)))).toBe(true);
    const sums = fs.readFileSync(path.join(copy, 'disk0.xxh64'), 'utf8').split('\n');
    const [sixth, seventh] = [sums[6], sums[7]].map((line) => line!.split(' ')[0]);
    expect(seventh).toBe(sixth);
  });

  it('silent corruption: a bit that flipped is found, and named', async () => {
    const file = chunk(copy, 2);
    const { mtime } = fs.statSync(file);
    const content = fs.readFileSync(file);
    content[100]! ^= 4;
    fs.writeFileSync(file, content);
    fs.utimesSync(file, mtime, mtime);
    const { exitCode, stdout, stderr } = await chunkmount.run(['verify', copy]);
    expect(exitCode).toBe(4);
    expect(stdout).toMatch(/disk0\/000000\/00000002.*hash/);
    expect(stderr).toMatch(/has 1 problem\n {2}take what is missing or damaged from another copy/);
    const to = chunkmount.path('damaged.raw');
    const told = expectError(await chunkmount.run(['restore', copy, '--disk=disk0', `--to=${to}`]), 4);
    expect(told.message).toMatch(/disk0\/000000\/00000002/);
    expect(fs.existsSync(to)).toBe(false);
    content[100]! ^= 4;
    fs.writeFileSync(file, content);
    fs.utimesSync(file, mtime, mtime);
  });

  it('sparse was lost: zeros take up no space in the tree, a tar of it, and what is restored', async () => {
    await chunkmount.succeed(...given, '--chunk-size=64K');
    const blocks = [3, 4, 5, 6].map((number) => fs.statSync(chunk(tree, number)).blocks);
    expect(blocks).toEqual([128, 0, 0, 128]);
    const archive = chunkmount.path('tree.tar');
    await execa('tar', ['--create', '--sparse', `--file=${archive}`, '--directory', tree, 'disk0']);
    await chunkmount.succeed('cleanup', '--name=demo');
    expect(fs.statSync(archive).size).toBeLessThan(15 * 64 * KIB);
    const to = chunkmount.path('sparse.raw');
    await chunkmount.succeed('restore', copy, '--disk=disk0', `--to=${to}`);
    expect(fs.statSync(to).blocks * 512).toBeLessThanOrEqual(14 * 64 * KIB);
    expect((await execa('cmp', [image, to])).exitCode).toBe(0);
  });

  it('restoring to a block device failed: it works, and one that is too small is refused first', async () => {
    const device = chunkmount.path('device.raw');
    fs.writeFileSync(device, noise(1088 * KIB, 2));
    await withLoopDevice(device, async (loop) => {
      const restore = ['restore', copy, '--disk=disk0', `--to=${loop}`];
      expect(expectError(await chunkmount.run(restore), 2).hint).toMatch(/--force/);
      await chunkmount.succeed(...restore, '--force');
    });
    const { size } = fs.statSync(image);
    expect(fs.readFileSync(device).subarray(0, size).equals(fs.readFileSync(image))).toBe(true);
    fs.truncateSync(device, 512 * KIB);
    const before = fs.readFileSync(device);
    await withLoopDevice(device, async (loop) => {
      const restore = ['restore', copy, '--disk=disk0', `--to=${loop}`, '--force'];
      expect(expectError(await chunkmount.run(restore), 2).message).toMatch(
        /is too small: it has 524288 bytes, disk0 has 1048576/,
      );
    });
    expect(fs.readFileSync(device).equals(before)).toBe(true);
  });

  it('too many small files: --chunk-size makes fewer', async () => {
    const count = async (size: string) => {
      const find = ['sh', '-c', 'find "$CHUNKMOUNT_TREE/disk0" -type f | wc -l'];
      const name = `--name=files-${size}`;
      return Number(await chunkmount.succeed('run', given[0]!, name, `--chunk-size=${size}`, '--', ...find));
    };
    expect([await count('64K'), await count('512K')]).toEqual([16, 2]);
    const told = expectError(await chunkmount.run([...given, '--chunk-size=32M']), 2);
    expect(told.hint).toMatch(/power of two from 4K to 16M/);
  });

  it('mounts were stale after the daemon died: errors, not emptiness, and cleanup takes them away', async () => {
    await chunkmount.succeed(...given, '--chunk-size=64K');
    const [daemon] = findProcesses((argv) => argv.at(-1)?.endsWith('/sessions/demo') === true);
    process.kill(daemon!.pid, 'SIGKILL');
    await eventually(async () => /^demo +dead/m.test(await chunkmount.succeed('list')));
    expect(() => fs.readdirSync(tree)).toThrow(/ENOTCONN|ECONNABORTED/);
    expect(
      (await execa('rsync', ['-a', '--delete', `${tree}/`, `${copy}/`], { reject: false })).exitCode,
    ).toBe(23);
    expect(fs.existsSync(chunk(copy, 0))).toBe(true);
    const told = expectError(await chunkmount.run(['cleanup', '--name=demo']), 1);
    expect(told.message).toMatch(/what was copied is not a whole backup$/);
    expect(fs.existsSync(tree)).toBe(false);
  });
});
