import { constants } from 'node:os';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { Opcode } from '../../../src/fuse/wire/protocol.js';
import { Exchange, fields, named } from '../exchange.js';
import {
  CHUNK,
  contentOf,
  MANIFEST,
  MANIFEST_INODE,
  SAMPLE_VDA,
  SAMPLE_VDB,
  SampleTrees,
} from '../sample-tree.js';
import { encode, GETXATTR_IN, GETXATTR_OUT, LSEEK_IN, LSEEK_OUT } from '../wire/layouts.js';

const { ENODATA, EISDIR, EINVAL, ENXIO, ERANGE } = constants.errno;

const HASH = 'user.chunkmount.xxh64';
const SEEK_DATA = 3;
const SEEK_HOLE = 4;

const trees = new SampleTrees();
let exchange: Exchange;

beforeAll(async () => {
  exchange = await Exchange.of(trees.tree({ vda: SAMPLE_VDA, vdb: SAMPLE_VDB }));
});
afterAll(() => trees.remove());

describe('READ', () => {
  const chunks = contentOf(SAMPLE_VDA);

  it.each([0, 1, 2, 3])('gives chunk %i from any place to any other', (chunk) => {
    const expected = chunks.subarray(chunk * CHUNK, (chunk + 1) * CHUNK);
    const n = expected.length;
    const inode = exchange.node(`vda/000000/0000000${chunk}`);
    for (const offset of [0, 1, 511, n - 1, n, n + 1, 2 * n + 500]) {
      for (const size of [0, 1, 2, n - 1, n, n + 1, 2 ** 20, 2 ** 32 - 1]) {
        const { error, payload } = exchange.read(inode, offset, size);
        expect(error).toBe(0);
        expect(payload.equals(expected.subarray(offset, offset + size))).toBe(true);
      }
    }
  });

  it('gives the sums in pieces of any size', () => {
    const inode = exchange.node('vda.xxh64');
    const whole = exchange.read(inode, 0, 4096).payload;
    expect(whole.toString()).toMatch(/^([0-9a-f]{16} {2}vda\/000000\/0000000[0-3]\n){4}$/);
    for (const size of [1, 7, 37, 38, 39, 100]) {
      const pieces: Buffer[] = [];
      for (let at = 0; at < whole.length; at += size) pieces.push(exchange.read(inode, at, size).payload);
      expect(Buffer.concat(pieces).equals(whole)).toBe(true);
    }
  });

  it('gives files from memory and from open files', () => {
    expect(exchange.read(BigInt(MANIFEST_INODE), 0, 4096).payload.toString()).toBe(MANIFEST);
    expect(exchange.read(BigInt(MANIFEST_INODE), 1, 3).payload.toString()).toBe(MANIFEST.slice(1, 4));
    expect(exchange.read(5n, 0, 4096).payload.toString()).toBe('memory state');
    expect(exchange.read(5n, 7, 4096).payload.toString()).toBe('state');
    expect(exchange.read(5n, 12, 4096).payload).toHaveLength(0);
  });

  it.each([2n ** 31n, 2n ** 32n, 2n ** 53n, 2n ** 63n, 2n ** 64n - 1n])('ends at offset %i', (offset) => {
    for (const path of [
      'vda/000000/00000000',
      'vda/000000/00000002',
      'vda.xxh64',
      'manifest.json',
      'state.bin',
    ]) {
      expect(exchange.read(exchange.node(path), offset, 4096)).toEqual({
        error: 0,
        payload: Buffer.alloc(0),
      });
    }
  });

  it('is for files only', () => {
    for (const path of ['', 'vda', 'vda/000000'])
      expect(exchange.read(exchange.node(path), 0, 1).error).toBe(-EISDIR);
  });
});

describe('xattrs', () => {
  const get = (inode: bigint, name: string, size: number) =>
    exchange.ask(Opcode.GETXATTR, inode, encode(GETXATTR_IN, { size }), named(name))!;
  const listNames = (inode: bigint, size: number) =>
    exchange.ask(Opcode.LISTXATTR, inode, encode(GETXATTR_IN, { size }))!;

  it('show the hash that the sums show', () => {
    const line = exchange.read(exchange.node('vda.xxh64'), 0, 16).payload.toString();
    const inode = exchange.node('vda/000000/00000000');
    expect(get(inode, HASH, 16).payload.toString()).toBe(line);
    expect(get(inode, HASH, 65536).payload.toString()).toBe(line);
  });

  it('tell their length to who asks with size 0', () => {
    const inode = exchange.node('vda/000000/00000000');
    expect(fields(get(inode, HASH, 0), GETXATTR_OUT)).toEqual({ size: 16, padding: 0 });
    expect(fields(listNames(inode, 0), GETXATTR_OUT)).toEqual({ size: HASH.length + 1, padding: 0 });
  });

  it('say so when the buffer is too small', () => {
    const inode = exchange.node('vda/000000/00000000');
    for (const size of [1, 15]) expect(get(inode, HASH, size).error).toBe(-ERANGE);
    for (const size of [1, HASH.length]) expect(listNames(inode, size).error).toBe(-ERANGE);
    expect(listNames(inode, HASH.length + 1).payload.toString()).toBe(`${HASH}\0`);
  });

  it.each(['', 'user.chunkmount', 'security.selinux', 'system.posix_acl_access', 'x'.repeat(255)])(
    'are not there under the name "%s"',
    (name) => {
      expect(get(exchange.node('vda/000000/00000000'), name, 100).error).toBe(-ENODATA);
    },
  );

  it('are only on chunks', () => {
    for (const path of ['', 'vda', 'vda.xxh64', 'manifest.json']) {
      expect(get(exchange.node(path), HASH, 100).error).toBe(-ENODATA);
      expect(listNames(exchange.node(path), 100).payload).toHaveLength(0);
      expect(fields(listNames(exchange.node(path), 0), GETXATTR_OUT).size).toBe(0);
    }
  });
});

describe('LSEEK', () => {
  const seek = (path: string, offset: number | bigint, whence: number) =>
    exchange.ask(Opcode.LSEEK, exchange.node(path), encode(LSEEK_IN, { offset, whence }))!;

  it.each([
    ['vda/000000/00000000', 0, SEEK_DATA, 0],
    ['vda/000000/00000000', 5, SEEK_DATA, 5],
    ['vda/000000/00000000', 5, SEEK_HOLE, CHUNK],
    ['vda/000000/00000001', 5, SEEK_HOLE, 5],
    ['vda/000000/00000002', 0, SEEK_HOLE, 0],
    ['vda/000000/00000003', 99, SEEK_HOLE, 100],
    ['vda.xxh64', 3, SEEK_DATA, 3],
    ['manifest.json', 3, SEEK_HOLE, MANIFEST.length],
  ])('in %s from %i (%i) is %i', (path, offset, whence, expected) => {
    expect(fields(seek(path, offset, whence), LSEEK_OUT).offset).toBe(BigInt(expected));
  });

  it.each([
    ['vda/000000/00000001', 0, SEEK_DATA, ENXIO],
    ['vda/000000/00000000', CHUNK, SEEK_DATA, ENXIO],
    ['vda/000000/00000000', CHUNK, SEEK_HOLE, ENXIO],
    ['vda/000000/00000000', 2n ** 63n, SEEK_HOLE, ENXIO],
    ['vda/000000/00000000', 0, 0, EINVAL],
    ['vda/000000/00000000', 0, 99, EINVAL],
    ['vda', 0, SEEK_DATA, EINVAL],
  ])('in %s from %i (%i) fails', (path, offset, whence, errno) => {
    expect(seek(path, offset, whence).error).toBe(-errno);
  });
});
