import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import type { Attributes } from '../../../src/fuse/filesystem.js';
import {
  ATTR_LENGTH,
  ATTR_OUT_LENGTH,
  direntLength,
  ENTRY_LENGTH,
  Reply,
} from '../../../src/fuse/wire/reply.js';
import { Request } from '../../../src/fuse/wire/request.js';
import {
  ATTR,
  ATTR_OUT,
  DIRENT,
  decode,
  ENTRY_OUT,
  encode,
  IN_HEADER,
  lengthOf,
  OUT_HEADER,
  STATFS_OUT,
  zeros,
} from './layouts.js';

/** The longest time that the kernel's jiffies do not overflow with. */
const FOREVER = BigInt(0x3fffffff);

const attributes: Attributes = {
  inode: 2 ** 51 - 3,
  kind: 'file',
  size: 2 ** 40 + 5,
  blocks: 2 ** 33 + 7,
  mtime: 2 ** 32 - 1,
  mtimeNs: 999_999_999,
  mode: 0o400,
  nlink: 3,
  uid: 2 ** 32 - 2,
  gid: 65534,
  blockSize: 262144,
};

const attr = {
  ino: BigInt(2 ** 51 - 3),
  size: BigInt(2 ** 40 + 5),
  blocks: BigInt(2 ** 33 + 7),
  atime: BigInt(2 ** 32 - 1),
  mtime: BigInt(2 ** 32 - 1),
  ctime: BigInt(2 ** 32 - 1),
  atimensec: 999_999_999,
  mtimensec: 999_999_999,
  ctimensec: 999_999_999,
  mode: 0o100400,
  nlink: 3,
  uid: 2 ** 32 - 2,
  gid: 65534,
  rdev: 0,
  blksize: 262144,
  flags: 0,
};

/** Full of rubbish, as a reused buffer is. */
function dirtyReply(): Reply {
  return new Reply(Buffer.alloc(4096, 0xee));
}

function request(unique: bigint): Request {
  const made = new Request(encode(IN_HEADER, { len: 40, opcode: 3, unique, nodeid: 1 }));
  made.parse(40);
  return made;
}

describe('Reply', () => {
  it('knows the lengths of its structures', () => {
    expect([ATTR_LENGTH, ENTRY_LENGTH, ATTR_OUT_LENGTH]).toEqual([
      lengthOf(ATTR),
      lengthOf(ENTRY_OUT),
      lengthOf(ATTR_OUT),
    ]);
  });

  it('gives every unique number back bit by bit', () => {
    fc.assert(
      fc.property(fc.bigInt({ min: 0n, max: 2n ** 64n - 1n }), (unique) => {
        const reply = dirtyReply();
        expect(reply.header(request(unique), 24)).toBe(40);
        expect(decode(reply.bytes, OUT_HEADER)).toEqual({ len: 40, error: 0, unique });
      }),
    );
  });

  it('makes an error of exactly 16 bytes', () => {
    const reply = dirtyReply();
    const unique = 2n ** 53n + 1n;
    expect(reply.error(request(unique), -61)).toBe(16);
    expect(decode(reply.bytes, OUT_HEADER)).toEqual({ len: 16, error: -61, unique });
  });

  it('writes a fuse_entry_out', () => {
    const reply = dirtyReply();
    reply.entry(16, attributes);
    expect(decode(reply.bytes, ENTRY_OUT, 16)).toEqual({
      nodeid: attr.ino,
      generation: 0n,
      entry_valid: FOREVER,
      attr_valid: FOREVER,
      entry_valid_nsec: 0,
      attr_valid_nsec: 0,
      ...attr,
    });
  });

  it('writes a fuse_attr_out', () => {
    const reply = dirtyReply();
    reply.attributesOut(16, attributes);
    expect(decode(reply.bytes, ATTR_OUT, 16)).toEqual({
      attr_valid: FOREVER,
      attr_valid_nsec: 0,
      dummy: 0,
      ...attr,
    });
  });

  it.each([
    ['directory', 0o500, 0o040500],
    ['symlink', 0o777, 0o120777],
    ['file', 0o440, 0o100440],
  ] as const)('adds the type of a %s to its mode', (kind, mode, expected) => {
    const reply = dirtyReply();
    reply.attributes(0, { ...attributes, kind, mode });
    expect(decode(reply.bytes, ATTR)).toMatchObject({ mode: expected });
  });

  it.each([
    ['vda', 'directory', 4, 32],
    ['12345678', 'file', 8, 32],
    ['123456789', 'file', 8, 40],
    ['x'.repeat(255), 'file', 8, 280],
  ] as const)('writes a fuse_dirent for %s', (name, kind, type, length) => {
    const reply = dirtyReply();
    expect(reply.dirent(16, name, 2 ** 51 - 1, kind, 2 ** 33 + 1)).toBe(length);
    const namelen = Buffer.byteLength(name);
    expect(direntLength(namelen)).toBe(length);
    expect(decode(reply.bytes, DIRENT, 16)).toEqual({
      ino: BigInt(2 ** 51 - 1),
      off: BigInt(2 ** 33 + 1),
      namelen,
      type,
    });
    expect(reply.bytes.toString('utf8', 40, 40 + namelen)).toBe(name);
    const padding = reply.bytes.subarray(40 + namelen, 16 + length);
    expect(padding.equals(Buffer.alloc(padding.length))).toBe(true);
    expect(reply.bytes[16 + length]).toBe(0xee);
  });

  it('writes an entry without attributes', () => {
    const reply = dirtyReply();
    reply.emptyEntry(16);
    expect(decode(reply.bytes, ENTRY_OUT, 16)).toEqual(zeros(ENTRY_OUT));
    expect(reply.bytes[16 + lengthOf(ENTRY_OUT)]).toBe(0xee);
  });

  it('writes a fuse_kstatfs', () => {
    const reply = dirtyReply();
    const length = reply.statfs(request(1n), { blockSize: 4096, blocks: 2 ** 35 + 1, files: 2 ** 33 + 1 });
    expect(length).toBe(96);
    expect(decode(reply.bytes, STATFS_OUT, 16)).toEqual(
      zeros(STATFS_OUT, {
        blocks: 2 ** 35 + 1,
        files: 2 ** 33 + 1,
        bsize: 4096,
        namelen: 255,
        frsize: 4096,
      }),
    );
    expect(reply.bytes[96]).toBe(0xee);
  });
});
