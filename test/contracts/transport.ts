import { spawn } from 'node:child_process';
import { once } from 'node:events';
import * as fs from 'node:fs';
import { constants } from 'node:os';
import * as path from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import type { TransportKind } from '../../src/fuse/transport.js';
import { mountAt } from '../../src/host/mountinfo.js';
import { build, fuseDevice, program, type Requirement, requireAll, root } from '../support/requirements.js';
import { describeLife, describeSizes } from './transport-life.js';
import {
  CHUNK,
  expectedChunks,
  HASH_XATTR,
  probe,
  rsyncChunks,
  SampleDisk,
  system,
  TransportSession,
} from './transport-session.js';

/**
 * What one transport cannot do and the other can. Each is tested both ways: a transport that could do more than it says
 * fails as well.
 */
export interface TransportDifferences {
  readonly kind: TransportKind;
  /** SEEK_HOLE and SEEK_DATA find the zero chunks; else the kernel says that all is data. */
  readonly findsHoles: boolean;
  /** Smallest unit of the manifest's mtime, in nanoseconds. */
  readonly timeUnit: bigint;
  /** Inode numbers are those of chunks/inodes.ts, which have 51 bits; else short ones of 32 bits. */
  readonly longInodes: boolean;
}

const { EROFS, ENOENT, ENOTDIR, ENAMETOOLONG, ENXIO, ERANGE, ENODATA } = constants.errno;
const SEEK_DATA = 3;
const SEEK_HOLE = 4;
const FUSE_SUPER_MAGIC = 0x65735546;

const NEEDS: readonly Requirement[] = [
  root,
  fuseDevice,
  build,
  program('rsync'),
  program('python3'),
  program('tar'),
  program('cmp', 'diffutils'),
  program('xxhsum', 'xxhash'),
  program('getfattr', 'attr'),
  program('qemu-img', 'qemu-utils'),
];

export function describeTransport(differences: TransportDifferences): void {
  describe(`the ${differences.kind} transport`, () => {
    beforeAll(() => requireAll(...NEEDS));
    describe('shows a tree that', () => describeTree(differences));
    describe('over its life', () => describeLife(differences.kind));
    describe('with other sizes', () => describeSizes(differences.kind));
  });
}

/** Everything that can be seen of one mounted tree. */
function describeTree(differences: TransportDifferences): void {
  let session: TransportSession;
  let disks: readonly SampleDisk[];
  let tree: string;

  beforeAll(async () => {
    session = new TransportSession(differences.kind);
    disks = [session.disk('long', SampleDisk.long), session.disk('short', SampleDisk.short)];
    tree = await session.mount(disks);
  });
  afterAll(() => session.close());

  const at = (name: string) => path.join(tree, name);

  it('is mounted read-only, for programs that cannot be tricked into running it', () => {
    const mount = mountAt(tree);
    expect(mount).toMatchObject({ type: 'fuse.chunkmount' });
    expect(mount?.source).toMatch(/^chunkmount:demo:/);
    const line = fs
      .readFileSync('/proc/self/mounts', 'utf8')
      .split('\n')
      .find((each) => each.includes(tree));
    const options = line?.split(' ')[3]?.split(',');
    expect(options).toEqual(
      expect.arrayContaining(['ro', 'nosuid', 'nodev', 'noexec', 'default_permissions']),
    );
  });

  it('has these names and no others', async () => {
    const chunks = disks.flatMap((disk) => expectedChunks(disk));
    const directories = disks.flatMap(({ target, directories: count }) => [
      target,
      ...Array.from({ length: count }, (_, i) => `${target}/${i.toString(16).padStart(6, '0')}`),
    ]);
    const sums = disks.map(({ target }) => `${target}.xxh64`);
    const expected = ['', 'manifest.json', ...sums, ...directories, ...chunks.map(({ name }) => name)];
    const found = await system('find', [tree, '-printf', '%P\\n']);
    expect(found.split('\n').sort()).toEqual(['', ...expected].sort());
  });

  it('lists chunks in the order of the disk', async () => {
    const names = (await system('ls', ['-U', at('disk0/000000')])).trim().split('\n');
    expect(names).toHaveLength(256);
    expect(names).toEqual([...names].sort());
  });

  it('has the modes, owner, sizes and blocks that it should', () => {
    for (const disk of disks) {
      for (const { name, content, isZero } of expectedChunks(disk)) {
        const stat = fs.lstatSync(at(name));
        expect([name, stat.mode, stat.uid, stat.gid, stat.nlink, stat.size, stat.blocks]).toEqual([
          ...[name, 0o100400, 0, 0, 1, content.length],
          isZero ? 0 : Math.ceil(content.length / 512),
        ]);
      }
    }
    for (const [name, nlink] of [
      ['', 4],
      ['disk0', 4],
      ['disk1', 3],
      ['disk0/000001', 2],
    ] as const) {
      expect(fs.lstatSync(at(name))).toMatchObject({ mode: 0o040500, uid: 0, gid: 0, nlink });
    }
    expect(fs.lstatSync(at('disk0.xxh64'))).toMatchObject({ mode: 0o100400, uid: 0, nlink: 1 });
  });

  it('has chunks with whole seconds, and a manifest that is newer than all', () => {
    let newest = 0n;
    for (const { name } of disks.flatMap((disk) => expectedChunks(disk))) {
      const { mtimeNs, ctimeNs, atimeNs } = fs.lstatSync(at(name), { bigint: true });
      expect([mtimeNs % 1_000_000_000n, ctimeNs, atimeNs]).toEqual([0n, mtimeNs, mtimeNs]);
      if (mtimeNs > newest) newest = mtimeNs;
    }
    const { mtimeNs } = fs.lstatSync(at('manifest.json'), { bigint: true });
    expect(mtimeNs).toBeGreaterThan(newest);
    expect(mtimeNs).toBeLessThanOrEqual(BigInt(session.mountedAt) * 1_000_000n);
    expect(mtimeNs % differences.timeUnit).toBe(0n);
  });

  it('has inode numbers that are unique, and the same in listings', async () => {
    const numbers = (await system('find', [tree, '-printf', '%i\\n'])).trim().split('\n');
    expect(new Set(numbers).size).toBe(numbers.length);
    expect(numbers.some((number) => Number(number) >= 2 ** 32)).toBe(differences.longInodes);
    for (const directory of ['', 'disk0', 'disk0/000001']) {
      for (const [name, inode] of (await probe('inodes', at(directory))) as [string, number][]) {
        expect([name, inode]).toEqual([name, fs.lstatSync(at(path.join(directory, name))).ino]);
      }
    }
  });

  it('holds the bytes of the disk', async () => {
    for (const { target, file } of disks) {
      const script = 'find "$1" -type f | sort | xargs cat | cmp - "$2"';
      await system('sh', ['-c', script, 'sh', at(target), file]);
    }
  });

  it('gives any part of a chunk', () => {
    for (const { name, content } of expectedChunks(disks[0]!).filter((_, i) =>
      [0, 1, 2, 299, 300].includes(i),
    )) {
      const n = content.length;
      const fd = fs.openSync(at(name), 'r');
      for (const position of [0, 1, 511, 4095, 4096, n - 1, n, n + 1, 2 * n + 500]) {
        for (const length of [1, 2, 4096, n - 1, n, n + 1]) {
          const buffer = Buffer.alloc(length);
          const got = fs.readSync(fd, buffer, 0, length, position);
          expect(buffer.subarray(0, got).equals(content.subarray(position, position + length))).toBe(true);
        }
      }
      fs.closeSync(fd);
    }
  });

  it('can be mapped into memory', async () => {
    for (const { name, content } of expectedChunks(disks[0]!).filter((_, i) => [0, 1, 300].includes(i))) {
      expect(await probe('mapped', at(name))).toBe(content.toString('hex'));
    }
  });

  it('passes its own sums, and each chunk carries its line’s hash', async () => {
    await system('xxhsum', ['--quiet', '-c', 'disk0.xxh64', 'disk1.xxh64'], { cwd: tree });
    for (const line of fs.readFileSync(at('disk0.xxh64'), 'utf8').trimEnd().split('\n').slice(-5)) {
      const [hash, name] = line.split('  ');
      const args = ['--absolute-names', '--only-values', '--name', HASH_XATTR, at(name!)];
      expect(await system('getfattr', args)).toBe(hash);
    }
  });

  it('has these xattrs and no others', async () => {
    const chunk = at('disk0/000000/00000000');
    expect(await system('getfattr', ['--absolute-names', '-m', '-', chunk])).toBe(
      `# file: ${chunk}\n${HASH_XATTR}\n\n`,
    );
    expect(await system('getfattr', ['-m', '-', at('manifest.json'), at('disk0')])).toBe('');
    const missing = await probe('xattr', 'get', chunk, 'user.other', '0', '100');
    expect(missing).toEqual([{ errno: ENODATA }, { errno: ENODATA }]);
  });

  it('tells who asks for an xattr with a small buffer', async () => {
    const chunk = at('disk0/000000/00000000');
    const hash = fs.readFileSync(at('disk0.xxh64'), 'latin1').slice(0, 16);
    const error = { errno: ERANGE };
    expect(await probe('xattr', 'get', chunk, HASH_XATTR, '0', '1', '15', '16', '255')).toEqual([
      ...[[16, ''], error, error, [16, hash], [16, hash]],
    ]);
    const all = `${HASH_XATTR}\0`;
    expect(
      await probe('xattr', 'list', chunk, '', '0', '1', String(all.length - 1), String(all.length)),
    ).toEqual([...[[all.length, ''], error, error, [all.length, all]]]);
  });

  it('tells where zeros are, as far as it can', async () => {
    const [data, stored, hole] = ['0', '1', '2'].map((i) => at(`disk0/000000/0000000${i}`)) as [
      string,
      string,
      string,
    ];
    const end = { errno: ENXIO };
    const ends = [String(CHUNK), String(CHUNK + 1)];
    expect(await probe('lseek', data, String(SEEK_DATA), '0', '5', ...ends)).toEqual([0, 5, end, end]);
    expect(await probe('lseek', data, String(SEEK_HOLE), '0', '5', ...ends)).toEqual([
      CHUNK,
      CHUNK,
      end,
      end,
    ]);
    for (const zeros of [stored, hole]) {
      const nextData = differences.findsHoles ? [end, end] : [0, 5];
      const nextHole = differences.findsHoles ? [0, 5] : [CHUNK, CHUNK];
      expect(await probe('lseek', zeros, String(SEEK_DATA), '0', '5')).toEqual(nextData);
      expect(await probe('lseek', zeros, String(SEEK_HOLE), '0', '5')).toEqual(nextHole);
    }
  });

  it('tells how large it is', async () => {
    const { type, bsize, blocks, bfree, bavail, files, ffree } = fs.statfsSync(tree);
    const size = disks.reduce((sum, disk) => sum + disk.content.length, 0);
    expect(type).toBe(FUSE_SUPER_MAGIC);
    expect(bsize * blocks).toBeGreaterThanOrEqual(size);
    expect(bsize * blocks).toBeLessThan(size + 2 * bsize);
    expect([bfree, bavail, ffree]).toEqual([0, 0, 0]);
    expect(files).toBe(Number((await system('find', [tree, '-printf', '.'])).length));
  });

  it.each<[string, () => void]>([
    ['a new file', () => fs.writeFileSync(at('new'), '')],
    ['a new chunk', () => fs.writeFileSync(at('disk0/000001/000001ff'), '')],
    ['writing', () => fs.openSync(at('manifest.json'), 'r+')],
    ['truncating', () => fs.truncateSync(at('disk0/000000/00000000'), 0)],
    ['mkdir', () => fs.mkdirSync(at('new'))],
    ['rmdir', () => fs.rmdirSync(at('disk0'))],
    ['unlink', () => fs.unlinkSync(at('manifest.json'))],
    ['rename', () => fs.renameSync(at('manifest.json'), at('other'))],
    ['link', () => fs.linkSync(at('manifest.json'), at('other'))],
    ['symlink', () => fs.symlinkSync('manifest.json', at('other'))],
    ['chmod', () => fs.chmodSync(at('manifest.json'), 0o777)],
    ['chown', () => fs.chownSync(at('disk0'), 1, 1)],
    ['utimes', () => fs.utimesSync(at('disk0/000000/00000000'), 1, 1)],
    ['access for writing', () => fs.accessSync(at('manifest.json'), fs.constants.W_OK)],
  ])('does not allow %s', (_, action) => {
    expect(action).toThrow(expect.objectContaining({ errno: -EROFS }));
  });

  it('has no symbolic links', () => {
    expect(() => fs.readlinkSync(at('manifest.json'))).toThrow('EINVAL');
  });

  it.each([
    ['x', ENOENT],
    ['disk2', ENOENT],
    ['disk0/000002', ENOENT],
    ['disk0/00000', ENOENT],
    ['disk0/000001/00000100/x', ENOTDIR],
    ['disk0/000000/00000100', ENOENT],
    ['disk0/000001/0000012d', ENOENT],
    ['disk0/000000/0000000A', ENOENT],
    ['manifest.json/x', ENOTDIR],
    ['ü', ENOENT],
    ['x'.repeat(255), ENOENT],
  ])('knows of nothing at %s', (name, errno) => {
    for (let time = 0; time < 2; time++) {
      expect(() => fs.lstatSync(at(name))).toThrow(expect.objectContaining({ errno: -errno }));
    }
  });

  // Up to 1024 bytes before Linux 6.14, all that a path can have since.
  it.each([256, 1024, 1025, 4000])('bears names of %i bytes', (length) => {
    const errors = [-ENOENT, -ENAMETOOLONG];
    let errno: number | undefined;
    try {
      fs.lstatSync(at('x'.repeat(length)));
    } catch (error) {
      errno = (error as NodeJS.ErrnoException).errno;
    }
    expect(errors).toContain(errno);
  });

  it('can be shown by ls -la', async () => {
    const listing = await system('ls', ['-la', tree, at('disk0/000001')]);
    expect(listing).toMatch(/^dr-x------ 4 root root .* disk0$/m);
    expect(listing).toMatch(/^-r-------- 1 root root +1536 .* 0000012c$/m);
  });

  it('comes out of tar --sparse as it went in', async () => {
    const out = session.path('tar');
    fs.mkdirSync(out);
    await system('sh', ['-c', 'tar -C "$1" --sparse -cf - . | tar -C "$2" -xf -', 'sh', tree, out]);
    await system('diff', ['-r', tree, out]);
    expect(fs.lstatSync(path.join(out, 'disk0/000000/00000002')).blocks).toBe(0);
  });

  it('is copied by rsync once, with its xattrs', async () => {
    const copy = session.path('rsync');
    expect(await rsyncChunks(tree, copy, '-X')).toHaveLength(304);
    expect(await rsyncChunks(tree, copy, '-X')).toEqual([]);
    await system('diff', ['-r', tree, copy]);
    const name = path.join(copy, 'disk0/000000/00000000');
    const hash = fs.readFileSync(at('disk0.xxh64'), 'latin1').slice(0, 16);
    expect(await system('getfattr', ['--absolute-names', '--only-values', '--name', HASH_XATTR, name])).toBe(
      hash,
    );
    await system('xxhsum', ['--quiet', '-c', 'disk0.xxh64', 'disk1.xxh64'], { cwd: copy });
  });

  it('is read by several at once', async () => {
    const script = 'find . -type f -exec cat {} + | xxhsum -H1 | cut -c1-16';
    const read = () => system('sh', ['-c', script], { cwd: tree });
    const sums = await Promise.all(Array.from({ length: 6 }, read));
    expect(new Set(sums).size).toBe(1);
    expect(sums[0]).toMatch(/^[0-9a-f]{16}\n$/);
  });

  it('survives readers that are killed', async () => {
    for (let round = 0; round < 5; round++) {
      const readers = Array.from({ length: 6 }, () =>
        spawn('sh', ['-c', 'while :; do find . -type f -exec cat {} +; done'], {
          cwd: tree,
          stdio: 'ignore',
          detached: true,
        }),
      );
      await Promise.all(readers.map((reader) => once(reader, 'spawn')));
      await new Promise((resolve) => setTimeout(resolve, 40 * round));
      const ends = readers.map((reader) => once(reader, 'exit'));
      // The whole group: the shell and its cat, which may be inside a read.
      for (const { pid } of readers) process.kill(-pid!, 'SIGKILL');
      await Promise.all(ends);
    }
    await system('xxhsum', ['--quiet', '-c', 'disk0.xxh64'], { cwd: tree });
    expect(await session.state()).toMatchObject({ state: 'mounted' });
  });

  it('counts what was asked of it', async () => {
    const before = await session.counters();
    await system('dd', [`if=${at('disk0/000000/00000003')}`, 'of=/dev/null', 'iflag=nocache', 'bs=64K']);
    const name = at(`disk0/unknown-${Date.now()}`);
    expect(fs.existsSync(name)).toBe(false);
    // The daemon writes its counters now and then, so a file may hold the reads and not yet the lookup.
    const after = await session.counters((counters) => counters.stats! > before.stats!);
    expect(after.requests).toBeGreaterThan(before.requests!);
    expect(after.ioErrors).toBe(0);
  });
}
