import { constants } from 'node:os';
import fc from 'fast-check';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { Opcode } from '../../../src/fuse/wire/protocol.js';
import { Exchange } from '../exchange.js';
import { SAMPLE_VDA, SAMPLE_VDB, SampleTrees } from '../sample-tree.js';
import { encode, IN_HEADER } from '../wire/layouts.js';

const { EINVAL } = constants.errno;

const trees = new SampleTrees();
let exchange: Exchange;

beforeAll(async () => {
  exchange = await Exchange.of(trees.tree({ vda: SAMPLE_VDA, vdb: SAMPLE_VDB }));
});
afterAll(() => trees.remove());

describe('hostile requests', () => {
  const opcodes = Object.values(Opcode);
  /** Payloads shorter than the structure that belongs to the request; LOOKUP, without its name, among them. */
  const SHORT: readonly (readonly [keyof typeof Opcode, number])[] = [
    ['INIT', 15],
    ['LOOKUP', 0],
    ['OPEN', 7],
    ['READ', 19],
    ['READDIR', 19],
    ['READDIRPLUS', 19],
    ['GETXATTR', 7],
    ['LISTXATTR', 7],
    ['LSEEK', 19],
  ];

  it.each(SHORT)('%s of %i bytes is refused', (name, length) => {
    for (let short = 0; short <= length; short++) {
      expect(exchange.ask(Opcode[name], 1, Buffer.alloc(short, 1))!.error).toBe(-EINVAL);
    }
  });

  it('whose length is wrong are no requests', () => {
    for (const len of [0, 39, 41, 2 ** 32 - 1])
      expect(exchange.send(encode(IN_HEADER, { len, opcode: 3 }))).toBe(-1);
    expect(exchange.send(Buffer.alloc(0))).toBe(-1);
  });

  it('of any bytes are answered or ignored, within the buffer', () => {
    const inodes = [
      1n,
      2n,
      5n,
      exchange.node('vda'),
      exchange.node('vda.xxh64'),
      exchange.node('vda/000000'),
      exchange.node('vda/000000/00000003'),
    ];
    const word = fc.oneof(
      fc.bigInt({ min: 0n, max: 2n ** 64n - 1n }),
      fc.constantFrom(0n, 1n, 4096n, 2n ** 20n, 2n ** 32n - 1n, 2n ** 63n, 2n ** 64n - 1n),
      fc.constantFrom(...inodes),
    );
    const header = fc.record({
      opcode: fc.oneof(fc.constantFrom(...opcodes), fc.nat(2 ** 32 - 1)),
      nodeid: fc.oneof(fc.constantFrom(...inodes), word),
    });
    const words = fc.array(word, { maxLength: 12 }).map((values) => {
      const bytes = Buffer.alloc(values.length * 8);
      for (const [i, value] of values.entries()) bytes.writeBigUInt64LE(value, i * 8);
      return bytes;
    });
    const tail = fc.oneof(
      fc.uint8Array({ maxLength: 300 }),
      fc.string({ unit: 'binary' }).map((s) => Buffer.from(s)),
    );
    fc.assert(
      fc.property(header, words, tail, ({ opcode, nodeid }, fixed, rest) => {
        const answer = exchange.ask(opcode, nodeid, fixed, rest);
        if (answer === undefined) expect([Opcode.FORGET, Opcode.BATCH_FORGET]).toContain(opcode);
      }),
      { numRuns: 5000 },
    );
    fc.assert(fc.property(fc.uint8Array({ maxLength: 400 }), (bytes) => void exchange.send(bytes)));
  });
});
