import * as fs from 'node:fs';
import * as path from 'node:path';
import { Worker } from 'node:worker_threads';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import type { ChunkHasher } from '../../src/chunks/chunk-hash.js';
import { type Geometry, geometry } from '../../src/chunks/geometry.js';
import type { StoredIndex } from '../../src/content-index/index-file.js';
import { RateLimit, sharedRate } from '../../src/content-index/rate-limit.js';
import { Resolver } from '../../src/content-index/resolver.js';
import {
  CHANGED,
  createRows,
  DATA,
  RESOLVED,
  type Rows,
  STOP,
  UNKNOWN,
  UNREADABLE,
  UNREADABLE_COUNT,
  ZERO,
} from '../../src/content-index/rows.js';
import { scanDisk } from '../../src/content-index/scan.js';
import { build, requireAll } from '../support/requirements.js';
import { hashOf, MemoryDisk, NO_ZEROS, noise, onDisk, TIMES, withByte } from './memory-disk.js';
import { CHUNK, hasher, header, rowOf, SampleIndexes } from './sample-index.js';

const LARGE = 256 * 1024;

const indexes = new SampleIndexes();
beforeAll(() => requireAll(build));
afterAll(() => indexes.remove());

describe('resolve', () => {
  it.each([1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + 500])(
    'knows the hashes of a disk of %i bytes',
    (size) => {
      const bytes = noise(size);
      const { rows, resolver } = onDisk(bytes);
      for (let chunk = 0; chunk < rows.count; chunk++) {
        expect(resolver.resolve(chunk)).toBe(DATA);
        const expected = hashOf(bytes.subarray(chunk * CHUNK, (chunk + 1) * CHUNK));
        expect(rowOf(rows, chunk)).toEqual([...expected, 1000]);
      }
      expect([rows.control[RESOLVED], rows.control[CHANGED]]).toEqual([rows.count, rows.count]);
    },
  );

  it('reads a chunk once', () => {
    const { reader, resolver } = onDisk(noise(2 * CHUNK));
    for (const chunk of [1, 1, 0, 1]) resolver.resolve(chunk);
    expect(reader.reads).toEqual([
      [CHUNK, CHUNK],
      [0, CHUNK],
    ]);
  });
});

describe('times', () => {
  /** The index of a session at 800 over `bytes`. */
  function stored(bytes: Buffer): StoredIndex {
    const first = geometry(bytes.length, CHUNK);
    const rows = createRows(first.chunkCount);
    const times = { snapshot: 800, newest: 0, unsettled: 0 };
    const before = new Resolver(first, rows, new MemoryDisk(bytes), NO_ZEROS, hasher, times, undefined);
    before.resolveRange(0, first.chunkCount);
    indexes.save(header(first.chunkCount, { diskSize: bytes.length }), rows);
    return indexes.open();
  }

  it('stay for chunks that did not change, and only for those', () => {
    const bytes = noise(5 * CHUNK);
    const previous = stored(bytes);
    bytes[2 * CHUNK + 17]! ^= 1;
    const { rows, resolver } = onDisk(bytes, { stored: previous });
    resolver.resolveRange(0, 5);
    previous.close();
    expect([...rows.mtimes]).toEqual([800, 800, 1000, 800, 800]);
    expect(rows.control[CHANGED]).toBe(1);
  });

  it('change for a last chunk that grew by zeros', () => {
    const bytes = noise(CHUNK + 100);
    const previous = stored(bytes);
    const { rows, resolver } = onDisk(Buffer.concat([bytes, Buffer.alloc(50)]), { stored: previous });
    resolver.resolveRange(0, 2);
    previous.close();
    expect([...rows.mtimes]).toEqual([800, 1000]);
  });

  it('change when zeros become data and data zeros', () => {
    const previous = stored(Buffer.concat([noise(CHUNK), Buffer.alloc(CHUNK)]));
    const { rows, resolver } = onDisk(Buffer.concat([Buffer.alloc(CHUNK), noise(CHUNK)]), {
      stored: previous,
    });
    expect([resolver.resolve(0), resolver.resolve(1)]).toEqual([ZERO, DATA]);
    previous.close();
    expect([...rows.mtimes]).toEqual([1000, 1000]);
  });

  it.each([0, 1])('change when half %i of the hash does', (half) => {
    const bytes = noise(2 * CHUNK);
    const before = onDisk(bytes);
    before.resolver.resolveRange(0, 2);
    before.rows.hashes[2 + half]! ^= 1;
    indexes.save(header(2), before.rows);
    const previous = indexes.open();
    const { rows, resolver } = onDisk(bytes, { stored: previous });
    resolver.resolveRange(0, 2);
    previous.close();
    expect([...rows.mtimes]).toEqual([1000, 1001]);
    expect(rowOf(rows, 1).slice(0, 2)).toEqual(hashOf(bytes.subarray(CHUNK)));
  });

  it('of chunks that were not there before are later than all', () => {
    const previous = stored(noise(CHUNK));
    const { rows, resolver } = onDisk(noise(3 * CHUNK), { stored: previous });
    resolver.resolveRange(0, 3);
    previous.close();
    expect([...rows.mtimes]).toEqual([800, 1000, 1000]);
  });

  it('stay when a chunk cannot be read', () => {
    const previous = stored(noise(3 * CHUNK));
    const { rows, resolver } = onDisk(noise(3 * CHUNK), { stored: previous, bad: [1] });
    resolver.resolveRange(0, 3);
    // A block is loaded when one of its rows is needed.
    expect(rowOf(rows, 1)).toEqual([...hashOf(noise(3 * CHUNK).subarray(CHUNK, 2 * CHUNK)), 800]);
    previous.close();
  });
});

describe('an unreadable chunk', () => {
  it.each([0, 3, 9])('%i leaves its neighbours readable', (bad) => {
    const { rows, resolver } = onDisk(noise(10 * CHUNK), { bad: [bad] });
    resolver.resolveRange(0, 10);
    const states = [...rows.states];
    expect(states.indexOf(UNREADABLE)).toBe(bad);
    expect(states.filter((state) => state === DATA)).toHaveLength(9);
    expect([rows.control[RESOLVED], rows.control[UNREADABLE_COUNT]]).toEqual([9, 1]);
    expect(resolver.resolve(bad)).toBe(UNREADABLE);
  });

  it('is not read again and again', () => {
    const { reader, resolver } = onDisk(noise(CHUNK), { bad: [0] });
    for (let time = 0; time < 3; time++) expect(resolver.resolve(0)).toBe(UNREADABLE);
    expect(reader.reads).toHaveLength(1);
  });
});

describe('zeros', () => {
  it('are found in what was read, also in a short last chunk', () => {
    const bytes = Buffer.alloc(3 * CHUNK + 5);
    bytes[2 * CHUNK - 1] = 1;
    const { resolver } = onDisk(bytes);
    expect([0, 1, 2, 3].map((chunk) => resolver.resolve(chunk))).toEqual([ZERO, DATA, ZERO, ZERO]);
  });

  it('that are known to be there are not read, and have the hash of zeros', () => {
    const { rows, reader, resolver } = onDisk(Buffer.alloc(3 * CHUNK + 5), {
      zeroMap: { isZero: () => true },
    });
    resolver.resolveRange(0, 2);
    expect([resolver.resolve(2), resolver.resolve(3)]).toEqual([ZERO, ZERO]);
    expect(reader.reads).toEqual([]);
    expect(rowOf(rows, 0)).toEqual([...hashOf(Buffer.alloc(CHUNK)), 1000]);
    expect(rowOf(rows, 3)).toEqual([...hashOf(Buffer.alloc(5)), 1000]);
  });

  // st_blocks of 0 makes tar store nothing, so a colliding hash must not do.
  it('are more than the hash of zeros', () => {
    const colliding: ChunkHasher = {
      implementation: 'native',
      hash: (_, into, at) => into.set([1, 2], at),
      begin: () => {},
      update: () => {},
      end: (into, at) => into.set([1, 2], at),
    };
    const large = onDisk(withByte(3 * LARGE, 2 * LARGE - 1), { hash: colliding, chunkSize: LARGE }).resolver;
    expect([0, 1, 2].map((chunk) => large.resolve(chunk))).toEqual([ZERO, DATA, ZERO]);
    const bytes = Buffer.alloc(3 * CHUNK);
    bytes[CHUNK] = 1;
    bytes[3 * CHUNK - 1] = 1;
    const { resolver } = onDisk(bytes, { hash: colliding });
    expect([0, 1, 2].map((chunk) => resolver.resolve(chunk))).toEqual([ZERO, DATA, DATA]);
  });
});

describe('a chunk that is larger than what is read at once', () => {
  it('has the hash of all its bytes, as the odd one at the end', () => {
    const bytes = noise(2 * LARGE + LARGE / 2 + 5);
    const { reader, rows, resolver } = onDisk(bytes, { chunkSize: LARGE });
    resolver.resolveRange(0, 3);
    for (const chunk of [0, 1, 2]) {
      const content = bytes.subarray(chunk * LARGE, (chunk + 1) * LARGE);
      expect(rowOf(rows, chunk)).toEqual([...hashOf(content), 1000]);
    }
    expect(Math.max(...reader.reads.map(([, length]) => length))).toBe(LARGE / 2);
  });

  it('of zeros is known as such', () => {
    const { rows, resolver } = onDisk(Buffer.alloc(LARGE), { chunkSize: LARGE });
    expect(resolver.resolve(0)).toBe(ZERO);
    expect(rowOf(rows, 0)).toEqual([...hashOf(Buffer.alloc(LARGE)), 1000]);
  });

  it.each([0, LARGE - 1])('is no zeros when all but byte %i of it are', (position) => {
    const { resolver } = onDisk(withByte(LARGE, position), { chunkSize: LARGE });
    expect(resolver.resolve(0)).toBe(DATA);
  });

  it('of which the end cannot be read is unreadable, and the next one is not', () => {
    const bad = [LARGE / CHUNK - 1];
    const { resolver } = onDisk(noise(2 * LARGE), { chunkSize: LARGE, bad });
    expect([resolver.resolve(0), resolver.resolve(1)]).toEqual([UNREADABLE, DATA]);
  });
});

describe('resolveRange', () => {
  const chunksRead = ({ reads }: MemoryDisk) => reads.map(([at, length]) => [at / CHUNK, length / CHUNK]);

  it('reads neighbours at once, up to 128 KiB, around those that are known', () => {
    const { reader, resolver } = onDisk(noise(80 * CHUNK));
    resolver.resolve(5);
    resolver.resolveRange(0, 80);
    expect(chunksRead(reader)).toEqual([
      [5, 1],
      [0, 5],
      [6, 32],
      [38, 32],
      [70, 10],
    ]);
  });

  it('reads nothing of what is known to be zeros, wherever that lies', () => {
    const zeroMap = { isZero: (at: number, length: number) => at >= 3 * CHUNK && at + length <= 40 * CHUNK };
    const bytes = Buffer.concat([noise(3 * CHUNK), Buffer.alloc(37 * CHUNK), noise(4 * CHUNK)]);
    const { reader, rows, resolver } = onDisk(bytes, { zeroMap });
    resolver.resolveRange(0, 44);
    expect(chunksRead(reader)).toEqual([
      [0, 3],
      [40, 4],
    ]);
    expect([2, 3, 39, 40].map((chunk) => rows.states[chunk])).toEqual([DATA, ZERO, ZERO, DATA]);
    expect(rows.control[RESOLVED]).toBe(44);
  });

  it('of nothing reads nothing', () => {
    const { reader, resolver } = onDisk(noise(CHUNK));
    resolver.resolveRange(0, 0);
    resolver.resolveRange(1, 1);
    expect(reader.reads).toEqual([]);
  });
});

describe('scanDisk', () => {
  it('resolves everything', () => {
    const { rows, resolver } = onDisk(noise(3000 * CHUNK + 1));
    scanDisk(resolver);
    expect(rows.control[RESOLVED]).toBe(3001);
    expect(rows.states.includes(UNKNOWN)).toBe(false);
  });

  it.each([true, false])('reads nothing before it is paid for, and zeros are free (%s)', (mayRead) => {
    const zeroMap = { isZero: (at: number) => at >= 6 * CHUNK };
    const { reader, resolver } = onDisk(noise(8 * CHUNK), { zeroMap });
    // A batch is what may be read in a quarter of a second.
    const limit = new RateLimit(sharedRate(16 * CHUNK));
    const paid: [bytes: number, reads: number][] = [];
    limit.pay = (bytes) => {
      paid.push([bytes, reader.reads.length]);
      return mayRead;
    };
    scanDisk(resolver, limit);
    expect(paid).toEqual([[4 * CHUNK, 0], ...(mayRead ? [[2 * CHUNK, 1]] : [])]);
    expect(reader.reads).toHaveLength(mayRead ? 2 : 0);
  });

  it('ends when told to', () => {
    const { rows, resolver, reader } = onDisk(noise(3000 * CHUNK));
    const stopAtSecond = reader.read.bind(reader);
    reader.read = (...args) => {
      if (reader.reads.length === 33) Atomics.store(rows.control, STOP, 1);
      stopAtSecond(...args);
    };
    scanDisk(resolver);
    expect(rows.control[RESOLVED]).toBe(2048);
  });
});

interface Work {
  readonly scan?: boolean;
  readonly chunks?: readonly number[];
  readonly ranges?: readonly (readonly [number, number])[];
}

describe('several threads on the same rows', () => {
  const COUNT = 2000;
  const disk: Geometry = geometry(COUNT * CHUNK - 1, CHUNK);
  const bytes = noise(disk.size);
  const file = path.join(indexes.directory, 'disk.raw');
  let fd: number;
  beforeAll(() => {
    fs.writeFileSync(file, bytes);
    fd = fs.openSync(file, 'r');
  });
  afterAll(() => fs.closeSync(fd));

  /** Lets all threads begin at the same time; gives the states that each of them saw. */
  async function together(
    rows: Rows,
    reads: Int32Array,
    pauseMs: number,
    works: readonly Work[],
  ): Promise<number[][]> {
    const url = new URL('./resolver-worker.mjs', import.meta.url);
    const workers = works.map(
      (work) => new Worker(url, { workerData: { disk, rows, times: TIMES, fd, reads, pauseMs, work } }),
    );
    const message = (worker: Worker) =>
      new Promise<unknown>((resolve, reject) => {
        worker.once('message', resolve);
        worker.once('error', reject);
      });
    await Promise.all(workers.map(message));
    const ends = workers.map(message);
    for (const worker of workers) worker.postMessage('go');
    const states = (await Promise.all(ends)) as number[][];
    await Promise.all(workers.map((worker) => worker.terminate()));
    return states;
  }

  function counters(): Int32Array {
    return new Int32Array(new SharedArrayBuffer(COUNT * 4));
  }

  function shuffled(seed: number): number[] {
    const chunks = Array.from({ length: COUNT }, (_, i) => i);
    let state = seed;
    for (let i = COUNT - 1; i > 0; i--) {
      state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
      const other = state % (i + 1);
      [chunks[i], chunks[other]] = [chunks[other]!, chunks[i]!];
    }
    return chunks;
  }

  it('read each chunk once, whatever they want and in whatever order', async () => {
    const rows = createRows(COUNT);
    const reads = counters();
    const seen = await together(rows, reads, 0, [
      { scan: true },
      { scan: true },
      { chunks: shuffled(1) },
      { chunks: shuffled(2) },
      { ranges: [[0, COUNT]] },
    ]);
    expect(reads.every((count) => count === 1)).toBe(true);
    for (const states of seen.slice(2, 4)) expect(states.every((state) => state === DATA)).toBe(true);
    expect([rows.control[RESOLVED], rows.control[CHANGED]]).toEqual([COUNT, COUNT]);
    for (let chunk = 0; chunk < COUNT; chunk++) {
      const expected = hashOf(bytes.subarray(chunk * CHUNK, (chunk + 1) * CHUNK));
      expect(rowOf(rows, chunk)).toEqual([...expected, 1000]);
    }
  });

  it('wait for the one that reads', async () => {
    const rows = createRows(COUNT);
    const reads = counters();
    const began = performance.now();
    const seen = await together(rows, reads, 300, [{ chunks: [7] }, { chunks: [7] }, { chunks: [7] }]);
    expect(performance.now() - began).toBeGreaterThan(250);
    expect(seen).toEqual([[DATA], [DATA], [DATA]]);
    expect(reads[7]).toBe(1);
    expect(rows.control[RESOLVED]).toBe(1);
  });
});
