import * as fs from 'node:fs';
import { afterAll, describe, expect, it } from 'vitest';
import { chunkLength, geometry } from '../../src/chunks/geometry.js';
import { beginAudit } from '../../src/content-index/audit.js';
import { RateLimit, sharedRate } from '../../src/content-index/rate-limit.js';
import { type DiskReader, Resolver, type ZeroMap } from '../../src/content-index/resolver.js';
import {
  AUDIT_DONE,
  CHANGED,
  createRows,
  DATA,
  DISTRUSTED,
  KEPT,
  MISMATCH,
  MISMATCH_LATE,
  RESOLVED,
  ROWS_PER_BLOCK,
  type Rows,
  STOP,
  TRUST,
  TRUSTED,
  UNREADABLE,
  ZERO,
} from '../../src/content-index/rows.js';
import { scanDisk } from '../../src/content-index/scan.js';
import { CHUNK, hasher, header, knownRows, rowOf, SampleIndexes } from './sample-index.js';

const COUNT = 20;
const TIMES = { snapshot: 1000, newest: 900, unsettled: 0 };
const NO_ZEROS: ZeroMap = { isZero: () => false };
const disk = geometry(COUNT * CHUNK, CHUNK);
const indexes = new SampleIndexes();

afterAll(() => indexes.remove());

class MemoryDisk implements DiskReader {
  readonly read_ = new Set<number>();

  constructor(
    readonly bytes: Buffer,
    readonly bad: number = -1,
  ) {}

  read(position: number, length: number, buffer: Uint8Array, offset: number): void {
    for (let chunk = position / CHUNK; chunk * CHUNK < position + length; chunk++) {
      this.read_.add(chunk);
      if (chunk === this.bad) throw new Error('bad sector');
    }
    buffer.set(this.bytes.subarray(position, position + length), offset);
  }
}

/** Chunk n is full of n: chunk 0 is zeros. */
function content(): Buffer {
  return Buffer.concat(Array.from({ length: COUNT }, (_, chunk) => Buffer.alloc(CHUNK, chunk)));
}

/** The index of a session that read `bytes`, with rows that are changed before it is saved. */
function indexed(bytes: Buffer, change: (rows: Rows) => void = () => {}) {
  const rows = createRows(COUNT);
  const before = { snapshot: 500, newest: 0, unsettled: 0 };
  scanDisk(new Resolver(disk, rows, new MemoryDisk(bytes), NO_ZEROS, hasher, before, undefined));
  change(rows);
  indexes.save(header(COUNT), rows);
  return indexes.open();
}

interface Given {
  readonly samples?: readonly number[];
  readonly changed?: readonly { first: number; end: number }[];
  readonly falseZeros?: readonly number[];
  readonly zeroMap?: ZeroMap;
  readonly bad?: number;
}

/** A session on `bytes` whose tracker says that only `changed` can differ from the stored index. */
function tracked(bytes: Buffer, stored: ReturnType<typeof indexed>, given: Given = {}) {
  const { samples = [], changed = [], falseZeros = [], zeroMap = NO_ZEROS, bad } = given;
  const rows = createRows(COUNT);
  const reader = new MemoryDisk(bytes, bad);
  const plan = { samples: Uint32Array.from(samples), falseZeros };
  beginAudit(rows, plan.samples, changed);
  const resolver = new Resolver(disk, rows, reader, zeroMap, hasher, TIMES, stored, plan);
  return { rows, reader, resolver };
}

describe('rows that a tracker calls unchanged', () => {
  it('stay as they are, and are not read; the others are', () => {
    const bytes = content();
    const stored = indexed(bytes);
    bytes.fill(0xee, 7 * CHUNK, 8 * CHUNK);
    const { rows, reader, resolver } = tracked(bytes, stored, {
      samples: [3, 12],
      changed: [{ first: 6, end: 9 }],
    });
    expect(resolver.resolve(5)).toBe(DATA);
    expect([...reader.read_].sort((a, b) => a - b)).toEqual([3, 12]);
    scanDisk(resolver);
    expect([...reader.read_].sort((a, b) => a - b)).toEqual([3, 6, 7, 8, 12]);
    expect([TRUST, AUDIT_DONE, KEPT, RESOLVED, CHANGED].map((slot) => rows.control[slot])).toEqual([
      TRUSTED,
      2,
      COUNT - 3,
      COUNT,
      1,
    ]);
    expect([rowOf(rows, 5)[2], rowOf(rows, 7)[2]]).toEqual([500, 1000]);
    expect(Number(rows.bytesRead[0])).toBe(5 * CHUNK);
  });

  it('are zeros if their hash says so, except those that are known not to be', () => {
    const stored = indexed(content());
    expect(tracked(content(), stored).resolver.resolve(0)).toBe(ZERO);
    expect(tracked(content(), stored, { falseZeros: [0] }).resolver.resolve(0)).toBe(DATA);
  });

  it.each([0, 1])('are no zeros if only half %i of their hash says so', (half) => {
    const stored = indexed(content(), ({ hashes }) => {
      hashes[5 * 2 + half] = hashes[half]!;
    });
    expect(tracked(content(), stored).resolver.resolve(5)).toBe(DATA);
  });

  it.each([0, 1])('are not believed when half %i of the hash of a sample differs', (half) => {
    const stored = indexed(content(), ({ hashes }) => {
      hashes[4 * 2 + half]! ^= 1;
    });
    const { rows, resolver } = tracked(content(), stored, { samples: [3, 4] });
    expect(resolver.audit.passed()).toBe(false);
    expect(rows.control[MISMATCH]).toBe(4 + 1);
  });

  it('are paid for only where they are a sample', () => {
    const given = { samples: [3, 12], changed: [{ first: 6, end: 9 }] };
    const { resolver } = tracked(content(), indexed(content()), given);
    const limit = new RateLimit(sharedRate(1e9));
    const paid: number[] = [];
    limit.pay = (bytes) => paid.push(bytes) > 0;
    scanDisk(resolver, limit);
    expect(paid).toEqual([CHUNK, CHUNK, 3 * CHUNK]);
  });

  it.each<[string, (resolver: Resolver) => void]>([
    ['by a scanner', scanDisk],
    ['all at once', (resolver) => resolver.resolveRange(0, resolver.disk.chunkCount)],
  ])(
    'are kept across the blocks of the index, and the last one although it is short: %s',
    (_, resolveAll) => {
      const count = 2 * ROWS_PER_BLOCK + 3;
      const cut = geometry(count * CHUNK - 100, CHUNK);
      const known = knownRows(count);
      const zeros = [0, ROWS_PER_BLOCK, count - 1];
      for (const chunk of zeros)
        hasher.hash(new Uint8Array(chunkLength(cut, chunk)), known.hashes, chunk * 2);
      indexes.save(header(count, { diskSize: cut.size }), known);
      const rows = createRows(count);
      const written = ROWS_PER_BLOCK + 7;
      beginAudit(rows, new Uint32Array(), [{ first: written, end: written + 1 }]);
      const reader = new MemoryDisk(Buffer.alloc(count * CHUNK, 1));
      const plan = { samples: new Uint32Array(), falseZeros: [] };
      resolveAll(new Resolver(cut, rows, reader, NO_ZEROS, hasher, TIMES, indexes.open(), plan));
      expect([...reader.read_]).toEqual([written]);
      expect([KEPT, RESOLVED, CHANGED].map((slot) => rows.control[slot])).toEqual([count - 1, count, 1]);
      expect(Array.from(rows.states.keys()).filter((chunk) => rows.states[chunk] === ZERO)).toEqual(zeros);
      expect(rowOf(rows, count - 2)).toEqual(rowOf(known, count - 2));
    },
  );

  it.each(['resolve', 'scan'])('are all read when one of the samples has changed (%s)', (how) => {
    const stored = indexed(content());
    const bytes = content();
    for (const chunk of [4, 11]) bytes.fill(0xee, chunk * CHUNK, (chunk + 1) * CHUNK);
    const { rows, reader, resolver } = tracked(bytes, stored, { samples: [2, 4, 9] });
    // One that did not change, and one that did but is not among the samples.
    if (how === 'resolve') for (const chunk of [1, 11]) resolver.resolve(chunk);
    expect([1, 11].map((chunk) => rowOf(rows, chunk)[2])).toEqual(how === 'resolve' ? [500, 1000] : [0, 0]);
    scanDisk(resolver);
    expect(reader.read_.size).toBe(COUNT);
    expect([TRUST, MISMATCH, MISMATCH_LATE, KEPT, CHANGED].map((slot) => rows.control[slot])).toEqual([
      DISTRUSTED,
      4 + 1,
      0,
      0,
      2,
    ]);
  });

  it('are not to be read as long as the tracker may be right, and then are', () => {
    const stored = indexed(content());
    const bytes = content().fill(0xee, 4 * CHUNK, 5 * CHUNK);
    const { resolver } = tracked(bytes, stored, { samples: [4, 6], changed: [{ first: 7, end: 9 }] });
    const good = tracked(content(), stored, { samples: [4, 6], changed: [{ first: 7, end: 9 }] }).resolver;
    expect(good.audit.passed()).toBe(true);
    expect(good.bytesToRead(0, COUNT)).toBe(2 * CHUNK);
    expect(resolver.audit.passed()).toBe(false);
    expect(resolver.bytesToRead(0, COUNT)).toBe(COUNT * CHUNK);
  });

  it.each([
    [
      'one by one',
      (resolver: Resolver) => {
        for (let chunk = 0; chunk < COUNT; chunk++) resolver.resolve(chunk);
      },
    ],
    ['all at once', (resolver: Resolver) => resolver.resolveRange(0, COUNT)],
    ['by a scanner', (resolver: Resolver) => scanDisk(resolver)],
  ])('are no longer believed when the image says that one of them is empty now: %s', (_, resolveAll) => {
    const stored = indexed(content());
    const bytes = content().fill(0, 6 * CHUNK, 7 * CHUNK);
    const zeroMap: ZeroMap = { isZero: (position) => position === 6 * CHUNK };
    const { rows, reader, resolver } = tracked(bytes, stored, { samples: [1], zeroMap });
    resolveAll(resolver);
    expect([MISMATCH, MISMATCH_LATE, KEPT].map((slot) => rows.control[slot])).toEqual([6 + 1, 1, 6]);
    expect([rows.states[6], rowOf(rows, 6)[2]]).toEqual([ZERO, 1000]);
    expect(reader.read_.size).toBe(1 + COUNT - 7);
  });

  it('are read where the index is damaged', () => {
    indexed(content());
    const damaged = fs.openSync(indexes.file, 'r+');
    fs.writeSync(damaged, 'x', fs.fstatSync(damaged).size - 40);
    fs.closeSync(damaged);
    const { rows, reader, resolver } = tracked(content(), indexes.open(), { samples: [3, 4] });
    // Not all at once: only what has its turn, so that a scanner can be stopped, and held back.
    resolver.keep(0, COUNT);
    expect(reader.read_.size).toBe(0);
    expect(resolver.bytesToRead(0, COUNT)).toBe(COUNT * CHUNK);
    scanDisk(resolver);
    expect(reader.read_.size).toBe(COUNT);
    expect([rows.control[KEPT], rows.control[RESOLVED], rows.control[MISMATCH]]).toEqual([0, COUNT, 0]);
  });

  it('are no sample when they cannot be read', () => {
    const { rows, resolver } = tracked(content(), indexed(content()), { samples: [3, 8], bad: 8 });
    scanDisk(resolver);
    expect([rows.states[8], rows.control[KEPT], rows.control[TRUST]]).toEqual([
      UNREADABLE,
      COUNT - 1,
      TRUSTED,
    ]);
  });

  it('do not keep a scanner that is asked to stop', () => {
    const { rows, reader, resolver } = tracked(content(), indexed(content()), { samples: [3, 8] });
    Atomics.store(rows.control, STOP, 1);
    scanDisk(resolver);
    expect(reader.read_.size).toBe(0);
    // Whoever still asks gets an answer.
    expect(resolver.resolve(3)).toBe(DATA);
  });
});

describe('the fingerprint of an index', () => {
  it('is another one when any row is', () => {
    const first = indexed(content()).fingerprint(hasher);
    expect(indexed(content()).fingerprint(hasher)).toBe(first);
    expect(first).toMatch(/^[0-9a-f]{16}$/);
    const bytes = content();
    bytes[17 * CHUNK + 5] = 0;
    expect(indexed(bytes).fingerprint(hasher)).not.toBe(first);
  });
});
