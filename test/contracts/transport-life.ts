import * as fs from 'node:fs';
import { constants } from 'node:os';
import * as path from 'node:path';
import { afterEach, beforeEach, expect, it } from 'vitest';
import type { TransportKind } from '../../src/fuse/transport.js';
import { run } from '../../src/host/exec.js';
import { listMounts, mountAt } from '../../src/host/mountinfo.js';
import { isAlive, waitForEnd } from '../../src/host/process-identity.js';
import {
  CHUNK,
  expectedChunks,
  rsyncChunks,
  SampleDisk,
  system,
  TransportSession,
} from './transport-session.js';

const { ENOTCONN } = constants.errno;

/** What happens between mount and cleanup, also when things go wrong. */
export function describeLife(kind: TransportKind): void {
  let session: TransportSession;
  let disk: SampleDisk;

  beforeEach(() => {
    session = new TransportSession(kind);
    disk = session.disk('short', SampleDisk.short);
  });
  afterEach(() => session.close());

  it('a chunk that stayed the same looks the same in the next session, and one that changed is later', async () => {
    const look = (tree: string) =>
      expectedChunks(disk).map(({ name }) => {
        const { ino, mtimeNs, ctimeNs, size, blocks } = fs.lstatSync(path.join(tree, name), { bigint: true });
        return { ino, mtimeNs, ctimeNs, size, blocks };
      });
    const before = look(await session.mount([disk]));
    await session.cleanup();
    expect(look(await session.mount([disk]))).toEqual(before);
    await session.cleanup();
    disk.write(CHUNK, Buffer.from('changed'));
    const after = look(await session.mount([disk]));
    expect(after[1]!.mtimeNs).toBeGreaterThan(before[1]!.mtimeNs);
    expect(after[1]!.ctimeNs).toBe(after[1]!.mtimeNs);
    expect(after[1]!.ino).toBe(before[1]!.ino);
    expect(after.filter((_, i) => i !== 1)).toEqual(before.filter((_, i) => i !== 1));
  });

  it('cleanup leaves neither mount nor mountpoint nor daemon', async () => {
    const tree = await session.mount([disk]);
    const daemon = session.daemon();
    await session.cleanup();
    expect(mountAt(tree)).toBeUndefined();
    expect(fs.existsSync(tree)).toBe(false);
    expect(isAlive(daemon)).toBe(false);
  });

  it('an unmount by hand ends the daemon, and cleanup the rest', async () => {
    const tree = await session.mount([disk]);
    await session.scanned();
    const daemon = session.daemon();
    await run('umount', [tree]);
    expect(await waitForEnd(daemon, 60_000)).toBe(true);
    // An rsync --delete from an empty directory would erase the backup.
    expect(fs.existsSync(tree)).toBe(false);
    await session.cleanup();
    // The index was saved: nothing counts as changed.
    await session.mount([disk]);
    expect(await session.scanned()).toMatchObject({ changed: 0 });
  });

  it('an unmount waits for open files, or serves them to their end when it is lazy', async () => {
    const tree = await session.mount([disk]);
    const daemon = session.daemon();
    const [chunk] = expectedChunks(disk);
    const fd = fs.openSync(path.join(tree, chunk!.name), 'r');
    await expect(run('umount', [tree])).rejects.toThrow('busy');
    await run('umount', ['--lazy', tree]);
    expect(mountAt(tree)).toBeUndefined();
    const buffer = Buffer.alloc(chunk!.content.length);
    fs.readSync(fd, buffer, 0, buffer.length, 0);
    expect(buffer.equals(chunk!.content)).toBe(true);
    expect(isAlive(daemon)).toBe(true);
    fs.closeSync(fd);
    expect(await waitForEnd(daemon, 60_000)).toBe(true);
    await session.cleanup();
  });

  it('a daemon that is killed leaves an error, and never an empty directory', async () => {
    const tree = await session.mount([disk]);
    const copy = session.path('copy');
    await rsyncChunks(tree, copy);
    const daemon = session.daemon();
    process.kill(daemon.pid, 'SIGKILL');
    expect(await waitForEnd(daemon, 60_000)).toBe(true);
    const gone = expect.objectContaining({ errno: -ENOTCONN });
    expect(() => fs.statfsSync(tree)).toThrow(gone);
    expect(() => fs.lstatSync(path.join(tree, 'unknown'))).toThrow(gone);
    // A listing may still come from the cache; then it is whole.
    let names: string[] | undefined;
    try {
      names = fs.readdirSync(tree);
    } catch (error) {
      expect(error).toEqual(gone);
    }
    if (names !== undefined) expect(names).toContain('disk0');
    await rsyncChunks(tree, copy).catch(() => {});
    await system('cmp', [disk.file, await session.rebuilt(copy, disk)]);
    expect(await session.state()).not.toMatchObject({ state: 'mounted' });
    const { exitCode, stderr } = await session.failingCleanup();
    expect([exitCode, stderr]).toEqual([1, expect.stringContaining('died before its tree was unmounted')]);
    expect(listMounts().some(({ mountpoint }) => mountpoint === tree)).toBe(false);
    expect(fs.existsSync(tree)).toBe(false);
  });

  it('the page cache is passed by if asked for', async () => {
    const tree = await session.mount([disk], '--direct-io');
    await system('xxhsum', ['--quiet', '-c', 'disk0.xxh64'], { cwd: tree });
    const chunk = path.join(tree, expectedChunks(disk)[0]!.name);
    const read = () => system('dd', [`if=${chunk}`, 'of=/dev/null', `bs=${CHUNK}`]);
    await read();
    const before = await session.counters();
    await read();
    const bytes = BigInt(before.bytesRead!) + BigInt(CHUNK);
    await session.counters((counters) => BigInt(counters.bytesRead!) >= bytes);
  });

  it('two trees live side by side', async () => {
    const other = new TransportSession(kind);
    try {
      const otherDisk = other.disk('long', SampleDisk.long);
      const [tree, second] = await Promise.all([session.mount([disk]), other.mount([otherDisk])]);
      await session.cleanup();
      expect(fs.existsSync(tree)).toBe(false);
      await system('xxhsum', ['--quiet', '-c', 'disk0.xxh64'], { cwd: second });
    } finally {
      await other.close();
    }
  });
}

/** Chunk sizes at both ends, and disks that hardly fill any. */
export function describeSizes(kind: TransportKind): void {
  it.each([
    [4 * 1024, 300 * 4 * 1024 + 512],
    [16 * 1024 * 1024, 2 * 16 * 1024 * 1024 + 1536],
    [256 * 1024, 512],
    [256 * 1024, 0],
  ])('chunks of %i bytes show a disk of %i bytes', async (chunkSize, size) => {
    const session = new TransportSession(kind);
    try {
      const disk = session.disk('sized', () => SampleDisk.sized(size), chunkSize);
      const tree = await session.mount([disk], `--chunk-size=${chunkSize}`);
      const expected = expectedChunks(disk);
      const found = (await system('find', [tree, '-name', '????????', '-printf', '%P %s\\n']))
        .split('\n')
        .filter(Boolean);
      expect(found.sort()).toEqual(expected.map(({ name, content }) => `${name} ${content.length}`));
      const script = 'find disk0 -type f | sort | xargs -r cat | cmp - "$1"';
      await system('sh', ['-c', script, 'sh', disk.file], { cwd: tree });
      if (size > 0) await system('xxhsum', ['--quiet', '-c', 'disk0.xxh64'], { cwd: tree });
      else expect(fs.readFileSync(path.join(tree, 'disk0.xxh64'), 'utf8')).toBe('');
    } finally {
      await session.close();
    }
  });
}
