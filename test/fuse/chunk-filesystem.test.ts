import * as fs from 'node:fs';
import { constants } from 'node:os';
import { afterAll, describe, expect, it } from 'vitest';
import { Opcode } from '../../src/fuse/wire/protocol.js';
import { Exchange, fields } from './exchange.js';
import { CHUNK, noise, SampleTrees } from './sample-tree.js';
import { ATTR_OUT, encode, GETXATTR_IN, LSEEK_IN, READ_IN } from './wire/layouts.js';

const { EIO } = constants.errno;

const trees = new SampleTrees();
afterAll(() => trees.remove());

describe('an unreadable chunk', () => {
  /** Three chunks, of which the image lost the last one after it was looked at. */
  async function damaged(): Promise<Exchange> {
    const exchange = await Exchange.of(trees.tree({ vda: [noise(3 * CHUNK)] }));
    fs.truncateSync(trees.image('vda'), 2 * CHUNK);
    return exchange;
  }

  it('has no attributes, and its neighbours have', async () => {
    const exchange = await damaged();
    const first = exchange.node('vda/000000/00000000');
    for (const chunk of [0n, 1n]) {
      expect(fields(exchange.ask(Opcode.GETATTR, first + chunk), ATTR_OUT)).toMatchObject({
        size: BigInt(CHUNK),
        blocks: 8n,
      });
    }
    expect(exchange.ask(Opcode.GETATTR, first + 2n)!.error).toBe(-EIO);
    expect(exchange.lookup(exchange.node('vda/000000'), '00000002').error).toBe(-EIO);
    expect(exchange.counters().ioErrors).toBe(2);
  });

  it('is listed all the same, without attributes', async () => {
    const exchange = await damaged();
    const directory = exchange.node('vda/000000');
    for (const opcode of [Opcode.READDIR, Opcode.READDIRPLUS]) {
      const { error, payload } = exchange.ask(opcode, directory, encode(READ_IN, { size: 4096 }))!;
      expect(error).toBe(0);
      expect(payload.includes('00000002')).toBe(true);
    }
  });

  it('has no content, no hash and no line among the sums', async () => {
    const exchange = await damaged();
    const chunk = exchange.node('vda/000000/00000000') + 2n;
    expect(exchange.read(chunk, 0, 10).error).toBe(-EIO);
    const name = Buffer.from('user.chunkmount.xxh64\0');
    expect(exchange.ask(Opcode.GETXATTR, chunk, encode(GETXATTR_IN, { size: 16 }), name)!.error).toBe(-EIO);
    const sums = exchange.node('vda.xxh64');
    const line = Number(fields(exchange.ask(Opcode.GETATTR, sums), ATTR_OUT).size) / 3;
    expect(exchange.read(sums, 0, 2 * line).payload).toHaveLength(2 * line);
    expect(exchange.read(sums, 0, 3 * line).error).toBe(-EIO);
    expect(exchange.read(sums, 3 * line - 1, 1).error).toBe(-EIO);
  });

  it('is not taken for a hole', async () => {
    const exchange = await damaged();
    const chunk = exchange.node('vda/000000/00000000') + 2n;
    const answer = exchange.ask(Opcode.LSEEK, chunk, encode(LSEEK_IN, { whence: 3 }));
    expect(answer).toMatchObject({ error: 0 });
  });
});

describe('disks of unusual sizes', () => {
  it('an empty one has an empty directory and empty sums', async () => {
    const exchange = await Exchange.of(trees.tree({ vda: [] }));
    expect(fields(exchange.ask(Opcode.GETATTR, exchange.node('vda.xxh64')), ATTR_OUT).size).toBe(0n);
    expect(fields(exchange.ask(Opcode.GETATTR, exchange.node('vda')), ATTR_OUT).nlink).toBe(2);
    expect(exchange.read(exchange.node('vda.xxh64'), 0, 100).payload).toHaveLength(0);
    const { payload } = exchange.ask(Opcode.READDIR, exchange.node('vda'), encode(READ_IN, { size: 4096 }))!;
    // "." and ".." only.
    expect(payload).toHaveLength(64);
  });

  it.each([4096, 65536, 16 * 1024 * 1024])(
    'chunks of %i bytes are read whole and in parts',
    async (chunkSize) => {
      const data = noise(chunkSize + 3000);
      const exchange = await Exchange.of(trees.tree({ vda: [data] }, chunkSize));
      const chunk = exchange.node('vda/000000/00000000');
      for (const offset of [0, 1, chunkSize - 1, chunkSize]) {
        const { payload } = exchange.read(chunk, offset, 2 ** 20);
        expect(payload.equals(data.subarray(offset, Math.min(offset + 2 ** 20, chunkSize)))).toBe(true);
      }
      expect(exchange.read(chunk + 1n, 0, 2 ** 20).payload.equals(data.subarray(chunkSize))).toBe(true);
    },
  );

  it('10 TiB of zeros cost nothing', async () => {
    const exchange = await Exchange.of(trees.tree({ vda: [10 * 2 ** 40] }, 256 * 1024));
    const last = exchange.node('vda/027fff/027fffff');
    expect(fields(exchange.ask(Opcode.GETATTR, last), ATTR_OUT)).toMatchObject({ size: 262144n, blocks: 0n });
    expect(exchange.ask(Opcode.GETATTR, last + 1n)!.error).toBe(-constants.errno.ENOENT);
  });
});

it('a disk keeps its inode numbers whatever else is in the tree', async () => {
  const alone = await Exchange.of(trees.tree({ vdb: [CHUNK] }));
  const beside = await Exchange.of(trees.tree({ sda: [CHUNK], vda: [CHUNK], vdb: [CHUNK], vdc: [CHUNK] }));
  for (const path of ['vdb', 'vdb.xxh64', 'vdb/000000', 'vdb/000000/00000000']) {
    expect(beside.node(path)).toBe(alone.node(path));
  }
});
