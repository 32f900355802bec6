import { constants } from 'node:os';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { Opcode } from '../../../src/fuse/wire/protocol.js';
import { Exchange, fields } from '../exchange.js';
import { MANIFEST_INODE, SAMPLE_VDA, SAMPLE_VDB, SampleTrees } from '../sample-tree.js';
import { DIRENT, decode, ENTRY_OUT, encode, READ_IN } from '../wire/layouts.js';

const { ENOTDIR } = constants.errno;

const trees = new SampleTrees();
let exchange: Exchange;

beforeAll(async () => {
  exchange = await Exchange.of(trees.tree({ vda: SAMPLE_VDA, vdb: SAMPLE_VDB }));
});
afterAll(() => trees.remove());

interface Entry {
  readonly name: string;
  readonly ino: bigint;
  readonly off: bigint;
  readonly type: number;
  readonly nodeid: bigint | undefined;
  /** What READDIRPLUS gives with it. */
  readonly entry: Buffer;
}

function entriesOf(payload: Buffer, plus: boolean): Entry[] {
  const entries: Entry[] = [];
  for (let at = 0; at < payload.length; ) {
    const entry = payload.subarray(at, at + 128);
    const nodeid = plus ? (decode(payload, ENTRY_OUT, at).nodeid as bigint) : undefined;
    if (plus) at += 128;
    const { ino, off, namelen, type } = decode(payload, DIRENT, at);
    const name = payload.toString('utf8', at + 24, at + 24 + Number(namelen));
    entries.push({ name, ino: ino as bigint, off: off as bigint, type: Number(type), nodeid, entry });
    at += Math.ceil((24 + Number(namelen)) / 8) * 8;
  }
  return entries;
}

/** Reads a directory to its end, `size` bytes at a time. */
function list(inode: bigint, opcode: number, size: number): Entry[] {
  const entries: Entry[] = [];
  for (;;) {
    const offset = entries.at(-1)?.off ?? 0n;
    const { error, payload } = exchange.ask(opcode, inode, encode(READ_IN, { offset, size }))!;
    expect(error).toBe(0);
    expect(payload.length).toBeLessThanOrEqual(size);
    if (payload.length === 0) return entries;
    entries.push(...entriesOf(payload, opcode === Opcode.READDIRPLUS));
  }
}

describe('READDIR and READDIRPLUS', () => {
  const sizes = [200, 512, 4096, 262144, 2 ** 32 - 1];

  it.each(sizes)('list the top in pieces of %i bytes', (size) => {
    const names = ['.', '..', 'manifest.json', 'state.bin', 'vda.xxh64', 'vda', 'vdb.xxh64', 'vdb'];
    expect(list(1n, Opcode.READDIR, size).map(({ name }) => name)).toEqual(names);
    expect(list(1n, Opcode.READDIRPLUS, size).map(({ name }) => name)).toEqual(names);
  });

  it.each(sizes)('list each of many chunks once, in pieces of %i bytes', (size) => {
    for (const opcode of [Opcode.READDIR, Opcode.READDIRPLUS]) {
      const entries = list(exchange.node('vdb/000000'), opcode, size);
      expect(entries.slice(2).map(({ name }) => Number.parseInt(name, 16))).toEqual([...Array(256).keys()]);
      expect(entries.slice(2).every(({ type }) => type === 8)).toBe(true);
    }
  });

  it('give every entry the number that stat gives', () => {
    for (const directory of ['', 'vda', 'vda/000000', 'vdb', 'vdb/000001']) {
      for (const { name, ino, type } of list(exchange.node(directory), Opcode.READDIR, 4096)) {
        const found = fields(exchange.lookup(exchange.node(directory), name), ENTRY_OUT);
        expect(found.ino).toBe(ino);
        expect(Number(found.mode) >> 12).toBe(type);
      }
    }
  });

  it('give attributes with all names but . and ..', () => {
    const [dot, dotdot, ...rest] = list(1n, Opcode.READDIRPLUS, 4096);
    expect([dot!.nodeid, dotdot!.nodeid]).toEqual([0n, 0n]);
    expect(rest.every(({ nodeid, ino }) => nodeid === ino)).toBe(true);
  });

  it.each([320, 4096, 262144])('give with each name what LOOKUP gives, in pieces of %i bytes', (size) => {
    for (const directory of ['', 'vda', 'vda/000000', 'vdb', 'vdb/000000', 'vdb/000001']) {
      const [, , ...rest] = list(exchange.node(directory), Opcode.READDIRPLUS, size);
      expect(rest).not.toEqual([]);
      for (const { name, entry, ino, nodeid } of rest) {
        expect(entry).toEqual(exchange.lookup(exchange.node(directory), name).payload);
        expect(ino).toBe(nodeid);
      }
    }
  });

  it('end at cookies beyond the end', () => {
    for (const offset of [9n, 1000n, 2n ** 32n, 2n ** 63n, 2n ** 64n - 1n]) {
      for (const opcode of [Opcode.READDIR, Opcode.READDIRPLUS]) {
        for (const directory of ['', 'vda', 'vda/000000']) {
          const answer = exchange.ask(
            opcode,
            exchange.node(directory),
            encode(READ_IN, { offset, size: 4096 }),
          );
          expect(answer).toEqual({ error: 0, payload: Buffer.alloc(0) });
        }
      }
    }
  });

  it('give nothing rather than a part of an entry', () => {
    const answer = exchange.ask(Opcode.READDIR, 1, encode(READ_IN, { size: 31 }));
    expect(answer!.payload).toHaveLength(0);
    expect(exchange.ask(Opcode.READDIR, 1, encode(READ_IN, { size: 32 }))!.payload).toHaveLength(32);
    expect(exchange.ask(Opcode.READDIRPLUS, 1, encode(READ_IN, { size: 159 }))!.payload).toHaveLength(0);
    expect(exchange.ask(Opcode.READDIRPLUS, 1, encode(READ_IN, { size: 160 }))!.payload).toHaveLength(160);
  });

  it('list directories only', () => {
    const size = encode(READ_IN, { size: 4096 });
    expect(exchange.ask(Opcode.READDIR, MANIFEST_INODE, size)!.error).toBe(-ENOTDIR);
    expect(exchange.ask(Opcode.READDIRPLUS, exchange.node('vda/000000/00000000'), size)!.error).toBe(
      -ENOTDIR,
    );
  });
});
