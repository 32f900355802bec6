import { constants } from 'node:os';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { Opcode } from '../../../src/fuse/wire/protocol.js';
import { Exchange, fields } from '../exchange.js';
import { CHUNK, MANIFEST_INODE, SAMPLE_VDA, SAMPLE_VDB, SampleTrees, SNAPSHOT } from '../sample-tree.js';
import {
  ATTR_OUT,
  ENTRY_OUT,
  encode,
  GETATTR_IN,
  GETXATTR_IN,
  LSEEK_IN,
  READ_IN,
  zeros,
} from '../wire/layouts.js';

const { ENOENT, ENOTDIR } = constants.errno;
const SEEK_DATA = 3;

const trees = new SampleTrees();
let exchange: Exchange;

beforeAll(async () => {
  exchange = await Exchange.of(trees.tree({ vda: SAMPLE_VDA, vdb: SAMPLE_VDB }));
});
afterAll(() => trees.remove());

describe('LOOKUP and GETATTR', () => {
  it('find a chunk and tell the same of it', () => {
    const attr = {
      ino: exchange.node('vda/000000/00000003'),
      size: 100n,
      blocks: 1n,
      atime: BigInt(SNAPSHOT),
      mtime: BigInt(SNAPSHOT),
      ctime: BigInt(SNAPSHOT),
      mode: 0o100400,
      nlink: 1,
      uid: 7,
      gid: 8,
      blksize: CHUNK,
    };
    const found = fields(exchange.lookup(exchange.node('vda/000000'), '00000003'), ENTRY_OUT);
    const forever = { entry_valid: 0x3fffffff, attr_valid: 0x3fffffff };
    expect(found).toEqual(zeros(ENTRY_OUT, { nodeid: attr.ino, ...forever, ...attr }));
    const got = exchange.ask(Opcode.GETATTR, attr.ino, encode(GETATTR_IN, { fh: 5 }));
    expect(fields(got, ATTR_OUT)).toEqual(zeros(ATTR_OUT, { attr_valid: 0x3fffffff, ...attr }));
  });

  it.each([
    ['vda/000000/00000000', 8n],
    ['vda/000000/00000001', 0n],
    ['vda/000000/00000002', 0n],
    ['vda/000000/00000003', 1n],
    ['manifest.json', 1n],
    ['vda.xxh64', 1n],
  ])('tell how many blocks %s has', (path, blocks) => {
    expect(fields(exchange.ask(Opcode.GETATTR, exchange.node(path)), ATTR_OUT).blocks).toBe(blocks);
  });

  it('tell nanoseconds where a file has them', () => {
    const attr = fields(exchange.ask(Opcode.GETATTR, MANIFEST_INODE), ATTR_OUT);
    expect(attr).toMatchObject({
      mtime: BigInt(SNAPSHOT + 2),
      mtimensec: 345_000_001,
      ctimensec: 345_000_001,
    });
    const chunk = fields(exchange.ask(Opcode.GETATTR, exchange.node('vda/000000/00000000')), ATTR_OUT);
    expect(chunk).toMatchObject({ mtimensec: 0, ctimensec: 0 });
  });

  it.each([
    ['', 4],
    ['vda', 3],
    ['vdb', 4],
    ['vda/000000', 2],
  ])('count the directories in "%s"', (path, nlink) => {
    expect(fields(exchange.ask(Opcode.GETATTR, exchange.node(path)), ATTR_OUT)).toMatchObject({
      nlink,
      mode: 0o40500,
    });
  });

  it('find . and .., which NFS asks for', () => {
    expect(fields(exchange.lookup(exchange.node('vda/000000'), '.'), ENTRY_OUT).nodeid).toBe(
      exchange.node('vda/000000'),
    );
    expect(fields(exchange.lookup(exchange.node('vda/000000'), '..'), ENTRY_OUT).nodeid).toBe(
      exchange.node('vda'),
    );
    expect(fields(exchange.lookup(exchange.node('vda'), '..'), ENTRY_OUT).nodeid).toBe(1n);
    expect(fields(exchange.lookup(1, '..'), ENTRY_OUT).nodeid).toBe(1n);
  });

  it.each([
    ['', 'vdc'],
    ['', 'vda.xxh64x'],
    ['', ''],
    ['', 'x'.repeat(255)],
    ['', 'x'.repeat(1024)],
    ['', '../vda'],
    ['vda', '000001'],
    ['vda', '00000'],
    ['vda', '00000000'],
    ['vda', 'ffffff'],
    ['vda/000000', '00000004'],
    ['vda/000000', '00000100'],
    ['vda/000000', 'ffffffff'],
    ['vda/000000', '0000000'],
    ['vda/000000', '0000000A'],
    ['vdb/000001', '00000000'],
    ['vdb/000001', '00000101'],
  ])('know of nothing at %s/%s', (parent, name) => {
    expect(exchange.lookup(exchange.node(parent), name).error).toBe(-ENOENT);
  });

  it('find nothing below a file', () => {
    expect(exchange.lookup(exchange.node('vda/000000/00000000'), 'x').error).toBe(-ENOTDIR);
    expect(exchange.lookup(MANIFEST_INODE, 'x').error).toBe(-ENOTDIR);
  });

  it.each([0n, 3n, 2n ** 32n, 2n ** 53n, 2n ** 64n - 1n])('know of no node %i', (inode) => {
    expect(exchange.ask(Opcode.GETATTR, inode)!.error).toBe(-ENOENT);
    expect(exchange.lookup(inode, 'vda').error).toBe(-ENOENT);
    expect(exchange.read(inode, 0, 10).error).toBe(-ENOENT);
    expect(exchange.ask(Opcode.READDIR, inode, encode(READ_IN, { size: 4096 }))!.error).toBe(-ENOENT);
    expect(exchange.ask(Opcode.LISTXATTR, inode, encode(GETXATTR_IN, {}))!.error).toBe(-ENOENT);
    const seek = encode(LSEEK_IN, { whence: SEEK_DATA });
    expect(exchange.ask(Opcode.LSEEK, inode, seek)!.error).toBe(-ENOENT);
  });

  it('know of no chunk next to the last one', () => {
    const last = exchange.node('vda/000000/00000003');
    expect(exchange.ask(Opcode.GETATTR, last + 1n)!.error).toBe(-ENOENT);
    expect(exchange.ask(Opcode.GETATTR, exchange.node('vda/000000') + 1n)!.error).toBe(-ENOENT);
    expect(exchange.ask(Opcode.GETATTR, exchange.node('vda.xxh64') + 1n)!.error).toBe(-ENOENT);
  });
});
