import * as fs from 'node:fs';
import { constants } from 'node:os';
import type { Stat } from 'fuse-native';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { createHasher } from '../../../src/chunks/chunk-hash.js';
import { ChunkFilesystem } from '../../../src/fuse/chunk-filesystem.js';
import { COUNTER_NAMES } from '../../../src/fuse/handlers.js';
import { mountOptions } from '../../../src/fuse/native/mount-options.js';
import { NativeOperations, toStatfs } from '../../../src/fuse/native/operations.js';
import { ShortInodes } from '../../../src/fuse/native/short-inodes.js';
import { CHUNK, contentOf, MANIFEST, SAMPLE_VDA, SAMPLE_VDB, SampleTrees, SNAPSHOT } from '../sample-tree.js';

const { ENOENT, ENOTDIR, EISDIR, ENODATA, ERANGE, EIO } = constants.errno;
const HASH = 'user.chunkmount.xxh64';

const trees = new SampleTrees();
let counters: Float64Array;
let operations: NativeOperations;

beforeAll(async () => {
  const tree = trees.tree({ vda: SAMPLE_VDA, vdb: SAMPLE_VDB });
  counters = new Float64Array(COUNTER_NAMES.length);
  const filesystem = new ChunkFilesystem(tree, await createHasher());
  operations = new NativeOperations(filesystem, new ShortInodes(tree.disks), counters);
});
afterAll(() => trees.remove());

function getattr(path: string): Stat | number {
  let result: Stat | number = Number.NaN;
  operations.table().getattr(path, (error, stat) => {
    result = stat ?? error;
  });
  return result;
}

function readdir(path: string): Record<string, Stat> | number {
  let result: Record<string, Stat> | number = Number.NaN;
  operations.table().readdir(path, (error, names, stats) => {
    result =
      names === undefined ? error : Object.fromEntries(names.map((name, i) => [name, stats![i]!] as const));
  });
  return result;
}

function read(path: string, position: number, length: number): Buffer | number {
  const buffer = Buffer.alloc(length, 0xee);
  let result = Number.NaN;
  operations.table().read(path, 0, buffer, length, position, (got) => {
    result = got;
  });
  return result < 0 ? result : buffer.subarray(0, result);
}

function xattr(path: string, size: number, name?: string): string | number {
  const buffer = Buffer.alloc(size);
  let result = Number.NaN;
  const reply = (got: number, memory: ArrayBufferLike) => {
    expect(memory).toBe(buffer.buffer);
    result = got;
  };
  if (name === undefined) operations.listxattr(reply, path, buffer);
  else operations.getxattr(reply, path, name, buffer);
  return result < 0 || size === 0 ? result : buffer.toString('utf8', 0, result);
}

describe('paths', () => {
  it('lead to what stands there', () => {
    expect(getattr('/')).toMatchObject({ ino: 1, mode: 0o40500, nlink: 4, uid: 7, gid: 8 });
    expect(getattr('/vda/000000/00000003')).toEqual({
      mode: 0o100400,
      ino: 9 * 2 ** 27 + 2 ** 19 + 3,
      size: 100,
      blocks: 1,
      blksize: CHUNK,
      nlink: 1,
      uid: 7,
      gid: 8,
      atime: SNAPSHOT * 1000,
      mtime: SNAPSHOT * 1000,
      ctime: SNAPSHOT * 1000,
    });
  });

  it('of zero chunks have no blocks', () => {
    expect(getattr('/vda/000000/00000001')).toMatchObject({ blocks: 0, size: CHUNK });
    expect(getattr('/vdb/000000/000000ff')).toMatchObject({ blocks: 0 });
  });

  it('keep nanoseconds as milliseconds, rounded up, so that the manifest stays the newest', () => {
    expect(getattr('/manifest.json')).toMatchObject({ mtime: (SNAPSHOT + 2) * 1000 + 346 });
  });

  it.each(['/x', '/vda/x', '/vda/000000/x', '/x/y/z', '/vda/000001/00000100', `/${'x'.repeat(300)}`])(
    '%s leads nowhere, however often it is asked for',
    (path) => {
      expect(getattr(path)).toBe(-ENOENT);
      expect(getattr(path)).toBe(-ENOENT);
      expect(readdir(path)).toBe(-ENOENT);
      expect(read(path, 0, 1)).toBe(-ENOENT);
      expect(xattr(path, 0)).toBe(-ENOENT);
      expect(xattr(path, 0, HASH)).toBe(-ENOENT);
    },
  );

  it('do not go through files', () => {
    expect(getattr('/manifest.json/x')).toBe(-ENOTDIR);
    expect(getattr('/vda/000000/00000000/x')).toBe(-ENOTDIR);
  });
});

describe('readdir', () => {
  it('gives all names with their type and number', () => {
    for (const path of ['/', '/vda', '/vda/000000', '/vdb/000001']) {
      const entries = readdir(path) as Record<string, Stat>;
      expect(Object.keys(entries).slice(0, 2)).toEqual(['.', '..']);
      for (const [name, { ino, mode }] of Object.entries(entries).slice(2)) {
        const stat = getattr(`${path === '/' ? '' : path}/${name}`) as Stat;
        expect([ino, mode]).toEqual([stat.ino, stat.mode & 0o170000]);
      }
    }
    expect(Object.keys(readdir('/vdb/000000') as object)).toHaveLength(258);
  });

  it('is for directories', () => {
    expect(readdir('/manifest.json')).toBe(-ENOTDIR);
  });
});

describe('read', () => {
  it('gives any part of a chunk', () => {
    const chunk = contentOf(SAMPLE_VDA).subarray(3 * CHUNK);
    for (const position of [0, 1, 99, 100, 101, 2 ** 40]) {
      for (const length of [0, 1, 99, 100, 101, 4096]) {
        expect(read('/vda/000000/00000003', position, length)).toEqual(
          Buffer.from(chunk.subarray(position, position + length)),
        );
      }
    }
    expect(String(read('/manifest.json', 0, 4096))).toBe(MANIFEST);
  });

  // libfuse's buffer has no byte more than is wanted.
  it('gives any part of the sums', () => {
    const sums = read('/vda.xxh64', 0, 4096) as Buffer;
    const line = sums.length / 4;
    expect(line).toBe(sums.indexOf('\n') + 1);
    for (const position of [0, 1, line - 1, line, sums.length - 1, sums.length]) {
      for (const length of [0, 1, line - 1, line, line + 1, 2 * line])
        expect(read('/vda.xxh64', position, length)).toEqual(
          Buffer.from(sums.subarray(position, position + length)),
        );
    }
  });

  it('is for files', () => {
    expect(read('/vda', 0, 1)).toBe(-EISDIR);
  });
});

describe('xattrs', () => {
  it('have their length, their value, and an error for a small buffer', () => {
    const path = '/vda/000000/00000000';
    expect(xattr(path, 0, HASH)).toBe(16);
    expect(xattr(path, 15, HASH)).toBe(-ERANGE);
    expect(xattr(path, 16, HASH)).toMatch(/^[0-9a-f]{16}$/);
    expect(xattr(path, 0)).toBe(HASH.length + 1);
    expect(xattr(path, HASH.length)).toBe(-ERANGE);
    expect(xattr(path, HASH.length + 1)).toBe(`${HASH}\0`);
    expect(xattr(path, 100, 'user.other')).toBe(-ENODATA);
    expect(xattr('/vda', 100)).toBe('');
  });
});

describe('statfs', () => {
  it('counts large disks in large blocks, because numbers have 32 bits', () => {
    const of = (blocks: number) => toStatfs({ blockSize: 4096, blocks, files: 2 ** 33 });
    expect(of(2 ** 32 - 1)).toMatchObject({ blocks: 2 ** 32 - 1, bsize: 4096, frsize: 4096 });
    expect(of(2 ** 32)).toMatchObject({ blocks: 2 ** 31, bsize: 8192, files: 2 ** 32 - 1 });
    const { blocks, bsize } = of(2 ** 38 + 1);
    expect(blocks).toBeLessThan(2 ** 32);
    expect(Math.ceil(((2 ** 38 + 1) * 4096) / bsize)).toBe(blocks);
  });
});

describe('the counters', () => {
  it('count as those of the kernel transport', () => {
    counters.fill(0);
    getattr('/vda');
    getattr('/x');
    read('/manifest.json', 0, 7);
    read('/vda', 0, 7);
    read('/vda/000000/00000000', 0, 7);
    read('/vda/000000/00000000', 7, 7);
    readdir('/');
    xattr('/', 0);
    const counted = () => Object.fromEntries(COUNTER_NAMES.map((name, i) => [name, counters[i]]));
    expect(counted()).toEqual({
      requests: 8,
      stats: 2,
      reads: 3,
      bytesRead: 21,
      ioErrors: 0,
      chunksRead: 1,
    });
    fs.truncateSync(trees.image('vda'), 0);
    expect(read('/vda/000000/00000000', 0, 1)).toBe(-EIO);
    expect(counted()).toMatchObject({ requests: 9, reads: 3, ioErrors: 1, chunksRead: 1 });
  });
});

describe('mountOptions', () => {
  const of = (changes: object) =>
    mountOptions({
      filesystem: { factory: '', data: undefined },
      mountpoint: '/mnt',
      source: 'chunkmount:demo',
      directIo: false,
      allowOther: false,
      ...changes,
    });

  it('are read-only, cached, and for this user alone', () => {
    const options = of({}).replace(/^-o/, '').split(',');
    expect(options).toEqual(
      expect.arrayContaining(['ro', 'nosuid', 'nodev', 'noexec', 'default_permissions']),
    );
    expect(options).toEqual(expect.arrayContaining(['fsname=chunkmount:demo', 'use_ino', 'kernel_cache']));
    expect(options).not.toContain('allow_other');
    expect(options).not.toContain('direct_io');
  });

  it('change as asked for', () => {
    expect(of({ allowOther: true }).split(',')).toContain('allow_other');
    const direct = of({ directIo: true }).split(',');
    expect(direct).toContain('direct_io');
    expect(direct).not.toContain('kernel_cache');
  });

  it('cannot be smuggled in by the source', () => {
    expect(of({ source: 'a,allow_other\\' })).toContain('fsname=a\\,allow_other\\\\,subtype=');
  });
});
