import * as fs from 'node:fs';
import fc from 'fast-check';
import { afterAll, beforeEach, describe, expect, it } from 'vitest';
import type { ChunkHasher } from '../../src/chunks/chunk-hash.js';
import { ensureBlock, StoredIndex, sections } from '../../src/content-index/index-file.js';
import { createRows, DAMAGED_BLOCKS, ROWS_PER_BLOCK, type Rows } from '../../src/content-index/rows.js';
import { saveIndex } from '../../src/content-index/save-index.js';
import { isOpen } from '../support/descriptors.js';
import { hasher, header, knownRows, rowOf, SampleIndexes } from './sample-index.js';

const indexes = new SampleIndexes();
afterAll(() => indexes.remove());
beforeEach(() => fs.rmSync(indexes.file, { force: true }));

/** Loads all blocks into new rows. */
function load(stored: StoredIndex, count: number): Rows {
  const rows = createRows(count);
  for (let block = 0; block * ROWS_PER_BLOCK < count; block++) ensureBlock(rows, block, stored, hasher);
  return rows;
}

/** Changes the file in place. */
function edit(change: (bytes: Buffer) => Buffer | undefined): void {
  const bytes = fs.readFileSync(indexes.file);
  fs.writeFileSync(indexes.file, change(bytes) ?? bytes);
}

function flip(position: number): void {
  edit((bytes) => {
    bytes[position]! ^= 0x10;
    return bytes;
  });
}

describe('an index file', () => {
  it.each([
    0,
    1,
    255,
    256,
    257,
    ROWS_PER_BLOCK - 1,
    ROWS_PER_BLOCK,
    ROWS_PER_BLOCK + 1,
    2 * ROWS_PER_BLOCK + 500,
  ])('gives back %i rows as they were', (count) => {
    const rows = knownRows(count);
    indexes.save(header(count), rows);
    const stored = indexes.open();
    expect(stored.header).toEqual(header(count));
    const back = load(stored, count);
    stored.close();
    expect(back.hashes).toEqual(rows.hashes);
    expect(back.mtimes).toEqual(rows.mtimes);
    expect(back.control[DAMAGED_BLOCKS]).toBe(0);
  });

  it('takes 12 bytes a chunk, and little more', () => {
    indexes.save(header(10 * ROWS_PER_BLOCK), knownRows(10 * ROWS_PER_BLOCK));
    const { size } = fs.statSync(indexes.file);
    expect(size).toBe(sections(10 * ROWS_PER_BLOCK).end);
    expect(size).toBe(48 + 160 * 4 + 10 * 8 + 10 * ROWS_PER_BLOCK * 12);
  });

  // The bytes are a format: another version of us has to read them.
  it('is laid out as documented', () => {
    const rows = createRows(2);
    rows.hashes.set([0xef46db37, 0x51d8e999, 1, 2]);
    rows.mtimes.set([1_700_000_000, 1_700_000_001]);
    indexes.save(header(2, { diskSize: 4097 }), rows);
    const bytes = fs.readFileSync(indexes.file);
    expect(bytes.toString('latin1', 0, 8)).toBe('CMINDEX\0');
    expect([8, 12, 16, 20].map((at) => bytes.readUInt32LE(at))).toEqual([1, 1, 4096, 1111]);
    expect([24, 32].map((at) => bytes.readBigUInt64LE(at))).toEqual([2n, 4097n]);
    expect(bytes.readUInt32LE(48)).toBe(2222);
    expect([60, 64, 68, 72, 76, 80].map((at) => bytes.readUInt32LE(at))).toEqual([
      0xef46db37, 0x51d8e999, 1, 2, 1_700_000_000, 1_700_000_001,
    ]);
    const sums = new Uint32Array(4);
    hasher.hash(Buffer.concat([bytes.subarray(0, 40), bytes.subarray(48, 52)]), sums, 0);
    hasher.hash(bytes.subarray(60), sums, 2);
    expect([40, 44, 52, 56].map((at) => bytes.readUInt32LE(at))).toEqual([...sums]);
  });

  it('is readable for its owner alone, and nothing is left beside it', () => {
    indexes.save(header(1), knownRows(1));
    indexes.save(header(1), knownRows(1));
    expect(fs.statSync(indexes.file).mode & 0o777).toBe(0o600);
    expect(fs.readdirSync(indexes.directory)).toEqual(['vda.v1']);
  });

  it('stays readable when another takes its place', () => {
    indexes.save(header(300), knownRows(300));
    const old = indexes.open();
    indexes.save(header(300), knownRows(300, 1_800_000_000));
    expect(rowOf(load(old, 300), 7)[2]).toBe(1_700_000_007);
    old.close();
  });
});

describe('an index file that cannot be used', () => {
  const open = () => StoredIndex.open(indexes.file, hasher);

  it('is none if there is none', () => {
    expect(open()).toBeUndefined();
  });

  it('says that it cannot be opened', () => {
    fs.mkdirSync(indexes.file);
    try {
      expect(open()).toBe(`the index ${indexes.file} cannot be read (EISDIR)`);
    } finally {
      fs.rmdirSync(indexes.file);
    }
  });

  it.each([
    ['is not an index file', 0],
    ['is of another version', 8],
    ['is of another version', 12],
    ['is damaged', 16],
    ['is damaged', 20],
    ['is damaged', 24],
    ['is damaged', 32],
    ['is damaged', 40],
    ['is damaged', 47],
    ['is damaged', 48],
    ['is damaged', 48 + 3 * 4 - 1],
  ])('%s if byte %i is wrong', (why, position) => {
    indexes.save(header(600), knownRows(600));
    flip(position);
    expect(open()).toBe(`the index ${indexes.file} ${why}`);
  });

  it.each([0, 1, 47, 48, 59, 60, 1000, -1])('is refused when cut off at %i', (length) => {
    indexes.save(header(600), knownRows(600));
    edit((bytes) => bytes.subarray(0, length < 0 ? bytes.length + length : length));
    expect(open()).toMatch(/^the index .* is (not an index file|cut off)$/);
  });

  it('is refused when something was added', () => {
    indexes.save(header(600), knownRows(600));
    fs.appendFileSync(indexes.file, '\0');
    expect(open()).toMatch(/is cut off$/);
  });

  it.each([0n, 2n ** 40n, 2n ** 63n, 2n ** 64n - 1n])('is refused when it claims %i chunks', (count) => {
    indexes.save(header(600), knownRows(600));
    edit((bytes) => {
      bytes.writeBigUInt64LE(count, 24);
      bytes.writeBigUInt64LE(BigInt.asUintN(64, count * 4096n), 32);
      return bytes;
    });
    expect(open()).toMatch(/is (cut off|damaged)$/);
  });

  it('does not stay open', () => {
    indexes.save(header(10), knownRows(10));
    flip(20);
    expect(open()).toContain('is damaged');
    expect(isOpen(indexes.file)).toBe(false);
  });

  it('is refused with a chunk size of 0', () => {
    indexes.save(header(600), knownRows(600));
    edit((bytes) => {
      bytes.writeUInt32LE(0, 16);
      return bytes;
    });
    expect(open()).toMatch(/is damaged$/);
  });

  it('never breaks anything, whatever is in it', () => {
    indexes.save(header(300), knownRows(300));
    const good = fs.readFileSync(indexes.file);
    const change = fc.tuple(fc.nat(good.length - 1), fc.nat(255));
    fc.assert(
      fc.property(fc.array(change, { maxLength: 4 }), fc.nat(good.length + 10), (changes, length) => {
        const bytes = Buffer.alloc(length);
        good.copy(bytes);
        for (const [position, value] of changes) if (position < length) bytes[position] = value;
        fs.writeFileSync(indexes.file, bytes);
        const stored = open();
        if (!(stored instanceof StoredIndex)) return;
        const rows = load(stored, 300);
        stored.close();
        if (bytes.equals(good)) expect(rows.mtimes[299]).toBe(1_700_000_299);
        else expect([...rows.mtimes].every((mtime) => mtime === 0)).toBe(rows.control[DAMAGED_BLOCKS] === 1);
      }),
      { numRuns: 500 },
    );
  });
});

describe('blocks of rows', () => {
  const COUNT = 3 * ROWS_PER_BLOCK;
  const layout = sections(COUNT);

  it.each([
    ['its sum', layout.sums + 8],
    ['its hashes', layout.hashes + ROWS_PER_BLOCK * 8],
    ['its hashes, at their end', layout.hashes + 2 * ROWS_PER_BLOCK * 8 - 1],
    ['its mtimes', layout.mtimes + ROWS_PER_BLOCK * 4],
    ['its mtimes, at their end', layout.mtimes + 2 * ROWS_PER_BLOCK * 4 - 1],
  ])('one that is damaged in %s is not known, and the others are', (_, position) => {
    indexes.save(header(COUNT), knownRows(COUNT));
    flip(position);
    const stored = indexes.open();
    const rows = load(stored, COUNT);
    stored.close();
    const { mtimes } = rows;
    expect([mtimes[0], mtimes[ROWS_PER_BLOCK - 1]]).toEqual([
      1_700_000_000,
      1_700_000_000 + ROWS_PER_BLOCK - 1,
    ]);
    expect(rowOf(rows, ROWS_PER_BLOCK)).toEqual([0, 0, 0]);
    expect(rowOf(rows, 2 * ROWS_PER_BLOCK - 1)).toEqual([0, 0, 0]);
    expect(mtimes[2 * ROWS_PER_BLOCK]).toBe(1_700_000_000 + 2 * ROWS_PER_BLOCK);
    expect(rows.control[DAMAGED_BLOCKS]).toBe(1);
  });

  it('are read when they are needed, and only then', () => {
    indexes.save(header(COUNT), knownRows(COUNT));
    flip(layout.hashes + ROWS_PER_BLOCK * 8);
    const stored = indexes.open();
    const rows = createRows(COUNT);
    ensureBlock(rows, 2, stored, hasher);
    expect(rows.control[DAMAGED_BLOCKS]).toBe(0);
    expect(rowOf(rows, 0)).toEqual([0, 0, 0]);
    expect(rows.mtimes[2 * ROWS_PER_BLOCK]).not.toBe(0);
    ensureBlock(rows, 1, stored, hasher);
    expect(rows.control[DAMAGED_BLOCKS]).toBe(1);
    stored.close();
  });

  it('that cannot be read are not known, and nobody waits for them for ever', () => {
    indexes.save(header(10), knownRows(10));
    const stored = indexes.open();
    stored.close();
    const rows = createRows(10);
    for (let time = 0; time < 2; time++) ensureBlock(rows, 0, stored, hasher);
    expect(rows.control[DAMAGED_BLOCKS]).toBe(1);
    expect(rowOf(rows, 5)).toEqual([0, 0, 0]);
  });

  it('are read once: what this session found out stays', () => {
    indexes.save(header(10), knownRows(10));
    const stored = indexes.open();
    const rows = createRows(10);
    ensureBlock(rows, 0, stored, hasher);
    rows.mtimes[3] = 5;
    ensureBlock(rows, 0, stored, hasher);
    expect(rows.mtimes[3]).toBe(5);
    stored.close();
  });

  it.each([
    [100, 300],
    [300, 100],
    [ROWS_PER_BLOCK + 10, ROWS_PER_BLOCK - 10],
    [ROWS_PER_BLOCK - 10, ROWS_PER_BLOCK + 10],
    [ROWS_PER_BLOCK, 2 * ROWS_PER_BLOCK],
  ])('of a disk that had %i chunks and has %i now are known as far as they go', (before, now) => {
    indexes.save(header(before), knownRows(before));
    const stored = indexes.open();
    const rows = load(stored, now);
    stored.close();
    const both = Math.min(before, now);
    expect(rows.mtimes.subarray(0, both)).toEqual(knownRows(both).mtimes);
    expect(rows.hashes.subarray(0, 2 * both)).toEqual(knownRows(both).hashes);
    expect(rows.mtimes.subarray(both).every((mtime) => mtime === 0)).toBe(true);
    expect(rows.control[DAMAGED_BLOCKS]).toBe(0);
  });
});

describe('saveIndex', () => {
  it('carries over the rows that nobody needed', () => {
    const count = 2 * ROWS_PER_BLOCK;
    indexes.save(header(count), knownRows(count));
    const previous = indexes.open();
    const rows = createRows(count);
    ensureBlock(rows, 0, previous, hasher);
    rows.mtimes[0] = 1_900_000_000;
    indexes.save(header(count), rows, previous);
    previous.close();
    const stored = indexes.open();
    const back = load(stored, count);
    stored.close();
    expect(back.mtimes[0]).toBe(1_900_000_000);
    expect(back.mtimes.subarray(1)).toEqual(knownRows(count).mtimes.subarray(1));
  });

  it('leaves the old index where it is when it cannot write the new one', () => {
    indexes.save(header(10), knownRows(10));
    const before = fs.readFileSync(indexes.file);
    const broken: ChunkHasher = {
      ...hasher,
      end: () => {
        throw new Error('no hash');
      },
    };
    expect(() => saveIndex(indexes.file, header(10), knownRows(10, 5), undefined, broken)).toThrow('no hash');
    expect(fs.readFileSync(indexes.file).equals(before)).toBe(true);
    expect(fs.readdirSync(indexes.directory)).toEqual(['vda.v1']);
  });
});
