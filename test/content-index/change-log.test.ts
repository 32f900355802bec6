import * as fs from 'node:fs';
import * as path from 'node:path';
import { afterAll, describe, expect, it, onTestFinished } from 'vitest';
import { geometry } from '../../src/chunks/geometry.js';
import { forgetUnsaved, openChangeLog } from '../../src/content-index/change-log.js';
import { Resolver } from '../../src/content-index/resolver.js';
import { createRows, DATA, READY, type Rows } from '../../src/content-index/rows.js';
import { replaceInFs } from '../support/replaced-fs.js';
import { MemoryDisk, NO_ZEROS, noise, TIMES } from './memory-disk.js';
import { CHUNK, hasher, header, knownRows, rowOf, SampleIndexes } from './sample-index.js';

const indexes = new SampleIndexes();
const log = path.join(indexes.directory, 'vda.changes.v1');
afterAll(() => indexes.remove());

function entries(): number[] {
  const bytes = fs.readFileSync(log);
  return Array.from({ length: bytes.length / 4 }, (_, word) => bytes.readUInt32LE(word * 4));
}

function writeEntries(words: readonly number[]): void {
  fs.writeFileSync(log, Buffer.from(Uint32Array.from(words).buffer));
}

describe('a resolver', () => {
  /** A disk of `count` chunks as it was at 800, with an empty log. */
  function disk(count: number) {
    const bytes = noise(count * CHUNK);
    const cut = geometry(bytes.length, CHUNK);
    const rows = createRows(count);
    const before = { snapshot: 800, newest: 0, unsettled: 0 };
    new Resolver(cut, rows, new MemoryDisk(bytes), NO_ZEROS, hasher, before, undefined).resolveRange(
      0,
      count,
    );
    indexes.save(header(count), rows);
    const stored = indexes.open();
    fs.rmSync(log, { force: true });
    const fd = openChangeLog(log);
    onTestFinished(() => {
      stored.close();
      fs.closeSync(fd);
    });
    const now = createRows(count);
    const reader = new MemoryDisk(bytes);
    const resolver = new Resolver(cut, now, reader, NO_ZEROS, hasher, TIMES, stored, undefined, fd);
    return { bytes, rows: now, resolver };
  }

  it('logs chunks that changed, those of a run at once, and none that is as it was', () => {
    const { bytes, resolver } = disk(100);
    for (const chunk of [3, 4, 70]) bytes[chunk * CHUNK]! ^= 0xff;
    const lengths: number[] = [];
    const write = fs.writeSync;
    replaceInFs('writeSync', (...args: Parameters<typeof fs.writeSync>) => {
      lengths.push((args[1] as unknown as Uint8Array).byteLength);
      return write(...args);
    });
    resolver.resolveRange(0, 100);
    expect(entries()).toEqual([3, 1000, 4, 1000, 70, 1000]);
    expect(lengths).toEqual([16, 8]);
  });

  it('logs them before anybody can see their time', () => {
    const { bytes, rows, resolver } = disk(40);
    for (const chunk of [0, 31, 32]) bytes[chunk * CHUNK]! ^= 0xff;
    const seen: boolean[] = [];
    const write = fs.writeSync;
    replaceInFs('writeSync', (...args: Parameters<typeof fs.writeSync>) => {
      const words = new Uint32Array((args[1] as unknown as Uint8Array).slice().buffer);
      for (let at = 0; at < words.length; at += 2) seen.push(rows.states[words[at]!]! >= READY);
      return write(...args);
    });
    for (const chunk of [0, 31, 32]) expect(resolver.resolve(chunk)).toBe(DATA);
    expect(seen).toEqual([false, false, false]);
  });

  it('logs zeros that take the place of data, too', () => {
    const { bytes, resolver } = disk(3);
    bytes.fill(0, CHUNK, 2 * CHUNK);
    resolver.resolveRange(0, 3);
    expect(entries()).toEqual([1, 1000]);
  });

  it('goes on when there is no room for it', () => {
    const { bytes, rows, resolver } = disk(2);
    bytes[0]! ^= 0xff;
    replaceInFs('writeSync', () => {
      throw Object.assign(new Error('no space left'), { code: 'ENOSPC' });
    });
    expect(resolver.resolve(0)).toBe(DATA);
    expect(rows.mtimes[0]).toBe(1000);
  });
});

describe('forgetUnsaved', () => {
  const COUNT = 5000;
  const TIME = 1_700_000_000;

  /** Rows of a new session, of which the index says `TIME` + the number of the chunk. */
  function forgotten(): { rows: Rows; count: number } {
    indexes.save(header(COUNT), knownRows(COUNT, TIME));
    const stored = indexes.open();
    const rows = createRows(COUNT);
    const count = forgetUnsaved(log, rows, stored, hasher);
    stored.close();
    return { rows, count };
  }

  it('forgets what was seen with a later time than the index has, and nothing else', () => {
    const later = TIME + 10_000;
    writeEntries([0, later, 4999, later, 4100, TIME + 4100, 4101, TIME + 4100, 4102, TIME + 4103]);
    const { rows, count } = forgotten();
    expect(count).toBe(3);
    expect([0, 4999, 4102].map((chunk) => rows.mtimes[chunk])).toEqual([0, 0, 0]);
    expect([4100, 4101].map((chunk) => rowOf(rows, chunk))).toEqual(
      [4100, 4101].map((chunk) => rowOf(knownRows(COUNT, TIME), chunk)),
    );
  });

  it('ignores chunks that the disk has not any more, and an entry that is cut off', () => {
    writeEntries([COUNT, TIME * 2, 2 ** 32 - 1, TIME * 2, 7, TIME * 2, 8]);
    const { rows, count } = forgotten();
    expect(count).toBe(1);
    expect([...rows.mtimes.subarray(6, 9)]).toEqual([TIME + 6, 0, TIME + 8]);
  });

  it('takes an empty log, and one that is longer than what is read at once', () => {
    writeEntries([]);
    expect(forgotten().count).toBe(0);
    const words = new Array<number>(2 * 200_000).fill(TIME);
    words.push(9, TIME * 2);
    writeEntries(words);
    expect(forgotten().count).toBe(1);
  });

  it('leaves chunks of which nothing is known alone, without an index', () => {
    writeEntries([1, TIME]);
    const rows = createRows(3);
    expect(forgetUnsaved(log, rows, undefined, hasher)).toBe(0);
  });
});
