import * as fs from 'node:fs';
import { constants } from 'node:os';
import * as path from 'node:path';
import { afterAll, describe, expect, it } from 'vitest';
import { beginAudit } from '../../src/content-index/audit.js';
import { LOST, RESOLVED } from '../../src/content-index/rows.js';
import { Opcode } from '../../src/fuse/wire/protocol.js';
import { Exchange, fields } from './exchange.js';
import { CHUNK, noise, SampleTrees, SNAPSHOT } from './sample-tree.js';
import { ATTR_OUT, encode, GETXATTR_IN, LSEEK_IN, READ_IN } from './wire/layouts.js';

const { EIO, ENOENT } = constants.errno;

const trees = new SampleTrees();
afterAll(() => trees.remove());

describe('an unreadable chunk', () => {
  /** Three chunks, of which the image lost the last one after it was looked at, and one of zeros. */
  async function damaged(): Promise<Exchange> {
    const exchange = await Exchange.of(trees.tree({ vda: [noise(3 * CHUNK), CHUNK] }));
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

  it('is the only one that is listed without them', async () => {
    const exchange = await damaged();
    const plus = encode(READ_IN, { size: 4096 });
    const { payload } = exchange.ask(Opcode.READDIRPLUS, exchange.node('vda/000000'), plus)!;
    // After "." and "..", all of the same length; each begins with its inode number, 0 if there is none.
    const nodes = [0, 1, 2, 3].map((chunk) => payload.readBigUInt64LE(((2 + chunk) * payload.length) / 6));
    const first = exchange.node('vda/000000/00000000');
    expect(nodes).toEqual([first, first + 1n, 0n, first + 3n]);
  });

  it('has no content, no hash and no line among the sums', async () => {
    const exchange = await damaged();
    const chunk = exchange.node('vda/000000/00000000') + 2n;
    expect(exchange.read(chunk, 0, 10).error).toBe(-EIO);
    const name = Buffer.from('user.chunkmount.xxh64\0');
    expect(exchange.ask(Opcode.GETXATTR, chunk, encode(GETXATTR_IN, { size: 16 }), name)!.error).toBe(-EIO);
    const sums = exchange.node('vda.xxh64');
    const line = Number(fields(exchange.ask(Opcode.GETATTR, sums), ATTR_OUT).size) / 4;
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

it('a chunk of a disk that was lost has no content, although its image can be read', async () => {
  const tree = trees.tree({ vda: [noise(CHUNK)] });
  const exchange = await Exchange.of(tree);
  const chunk = exchange.node('vda/000000/00000000');
  expect(exchange.read(chunk, 0, 10).payload).toHaveLength(10);
  Atomics.store(tree.disks[0]!.rows.control, LOST, 1);
  expect(exchange.read(chunk, 0, 10).error).toBe(-EIO);
});

it('a file at the top that was cut off while it was served has no end', async () => {
  const exchange = await Exchange.of(trees.tree({ vda: [] }));
  const state = exchange.node('state.bin');
  expect(exchange.read(state, 0, 100).payload.toString()).toBe('memory state');
  fs.truncateSync(path.join(path.dirname(trees.image('vda')), 'state'), 6);
  expect(exchange.read(state, 0, 100).error).toBe(-EIO);
});

it('chunks of zeros that are skipped are listed with attributes as little as without', async () => {
  const exchange = await Exchange.of(
    trees.tree({ vda: [noise(CHUNK), CHUNK, noise(CHUNK)] }, CHUNK, { skipZeros: true }),
  );
  for (const opcode of [Opcode.READDIR, Opcode.READDIRPLUS]) {
    const { payload } = exchange.ask(opcode, exchange.node('vda/000000'), encode(READ_IN, { size: 4096 }))!;
    const listed = ['00000000', '00000001', '00000002'].filter((name) => payload.includes(name));
    expect(listed).toEqual(['00000000', '00000002']);
  }
});

it('a name next to the last chunk is nothing that is looked at, also where zeros are skipped', async () => {
  const tree = trees.tree({ vda: [noise(CHUNK)] }, CHUNK, { skipZeros: true });
  const exchange = await Exchange.of(tree);
  const directory = exchange.node('vda/000000');
  expect(exchange.lookup(directory, '00000001').error).toBe(-ENOENT);
  expect(exchange.lookup(directory, '00000000').error).toBe(0);
  expect(tree.disks[0]!.rows.control[RESOLVED]).toBe(1);
});

it('chunks are listed with their own times, all three', async () => {
  const tree = trees.tree({ vda: [noise(3 * CHUNK)] });
  const disk = { ...tree.disks[0]!, keep: { samples: new Uint32Array(), falseZeros: [] } };
  const mtimes = [SNAPSHOT - 3, SNAPSHOT - 9, SNAPSHOT - 5];
  disk.rows.mtimes.set(mtimes);
  beginAudit(disk.rows, disk.keep.samples, []);
  const exchange = await Exchange.of({ ...tree, disks: [disk] });
  const plus = encode(READ_IN, { size: 4096 });
  const { payload } = exchange.ask(Opcode.READDIRPLUS, exchange.node('vda/000000'), plus)!;
  // "." and ".." come first; atime, mtime and ctime are 64 bytes into struct fuse_direntplus.
  const timeOf = (chunk: number, which: number) =>
    Number(payload.readBigUInt64LE(((2 + chunk) * payload.length) / 5 + 64 + which * 8));
  expect(mtimes.map((_, chunk) => [0, 1, 2].map((which) => timeOf(chunk, which)))).toEqual(
    mtimes.map((mtime) => [mtime, mtime, mtime]),
  );
});

it.each([
  ['has its old time while the tracker is believed that calls it unchanged', [], SNAPSHOT - 5],
  ['has a new time when a sample shows that the tracker is wrong', [0], SNAPSHOT],
])('a sums file %s', async (_, wanted, mtime) => {
  const tree = trees.tree({ vda: [noise(CHUNK)] });
  const samples = Uint32Array.from(wanted);
  const disk = {
    ...tree.disks[0]!,
    unchangedSumsMtime: SNAPSHOT - 5,
    keep: { samples, falseZeros: [] },
  };
  // Another hash than that of its content.
  disk.rows.mtimes[0] = SNAPSHOT - 5;
  beginAudit(disk.rows, samples, []);
  const exchange = await Exchange.of({ ...tree, disks: [disk] });
  const sums = fields(exchange.ask(Opcode.GETATTR, exchange.node('vda.xxh64')), ATTR_OUT);
  expect(sums.mtime).toBe(BigInt(mtime));
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
      // No more than we told the kernel to ask for.
      expect(exchange.read(chunk, 0, 2 ** 24).payload).toHaveLength(Math.min(chunkSize, 2 ** 20));
      expect(exchange.read(chunk + 1n, 0, 2 ** 20).payload.equals(data.subarray(chunkSize))).toBe(true);
    },
  );

  it('10 TiB of zeros cost nothing', async () => {
    const exchange = await Exchange.of(trees.tree({ vda: [10 * 2 ** 40] }, 256 * 1024));
    const last = exchange.node('vda/027fff/027fffff');
    expect(fields(exchange.ask(Opcode.GETATTR, last), ATTR_OUT)).toMatchObject({ size: 262144n, blocks: 0n });
    expect(exchange.ask(Opcode.GETATTR, last + 1n)!.error).toBe(-ENOENT);
  });
});

it('a disk keeps its inode numbers whatever else is in the tree', async () => {
  const alone = await Exchange.of(trees.tree({ vdb: [CHUNK] }));
  const beside = await Exchange.of(trees.tree({ sda: [CHUNK], vda: [CHUNK], vdb: [CHUNK], vdc: [CHUNK] }));
  for (const path of ['vdb', 'vdb.xxh64', 'vdb/000000', 'vdb/000000/00000000']) {
    expect(beside.node(path)).toBe(alone.node(path));
  }
});
