import * as fs from 'node:fs';
import * as os from 'node:os';
import * as path from 'node:path';
import { afterAll, beforeEach, describe, expect, it } from 'vitest';
import { createHasher } from '../../src/chunks/chunk-hash.js';
import { openRecord, readTreeRecord, rootMtime, settleRecord } from '../../src/content-index/tree-record.js';

const directory = fs.mkdtempSync(path.join(os.tmpdir(), 'chunkmount-record-'));
const file = path.join(directory, 'tree.v1.json');
const hasher = await createHasher();
afterAll(() => fs.rmSync(directory, { recursive: true }));
beforeEach(() => fs.rmSync(file, { force: true }));

const EMPTY = { version: 1, names: [], rootMtime: 0, newest: 0, unsettled: 0 };

describe('the record of a tree', () => {
  it('is empty before the first session', () => {
    expect(readTreeRecord(directory, hasher)).toEqual(EMPTY);
  });

  it.each([
    ['nothing', ''],
    ['half a record', '{"version":1,"names":["vda"'],
    ['no record', '[]'],
    ['another version', JSON.stringify({ ...EMPTY, version: 2 })],
    ['a negative time', JSON.stringify({ ...EMPTY, newest: -1 })],
    ['a time that is no integer', JSON.stringify({ ...EMPTY, unsettled: 1.5 })],
    ['names that are none', JSON.stringify({ ...EMPTY, names: [1] })],
    ['a missing time', JSON.stringify({ ...EMPTY, newest: undefined })],
  ])('is empty if the file holds %s', (_, text) => {
    fs.writeFileSync(file, text);
    expect(readTreeRecord(directory, hasher)).toEqual(EMPTY);
  });

  it('is unsettled while a session is open, and settled after', () => {
    const times = { snapshot: 1000, newest: 0, unsettled: 0 };
    openRecord(
      directory,
      readTreeRecord(directory, hasher),
      { times, names: ['vda'], rootMtime: 1000 },
      hasher,
    );
    expect(readTreeRecord(directory, hasher)).toEqual({
      version: 1,
      names: ['vda'],
      rootMtime: 1000,
      newest: 0,
      unsettled: 1000,
    });
    settleRecord(directory, times, { complete: true }, hasher);
    expect(readTreeRecord(directory, hasher)).toMatchObject({ newest: 1000, unsettled: 0 });
  });

  it('remembers what the sums file of a session showed in which nothing changed', () => {
    fs.writeFileSync(file, JSON.stringify({ ...EMPTY, names: ['vda'], rootMtime: 900, newest: 950 }));
    const before = readTreeRecord(directory, hasher);
    const times = { snapshot: 1000, newest: before.newest, unsettled: before.unsettled };
    openRecord(directory, before, { times, names: ['vda'], rootMtime: 900 }, hasher);
    settleRecord(directory, times, { complete: true }, hasher);
    expect(readTreeRecord(directory, hasher)).toEqual({ ...before, newest: 1000 });
  });

  it('remembers all sessions that were cut off', () => {
    openRecord(
      directory,
      readTreeRecord(directory, hasher),
      {
        times: { snapshot: 1000, newest: 0, unsettled: 0 },
        names: [],
        rootMtime: 1,
      },
      hasher,
    );
    const second = readTreeRecord(directory, hasher);
    const times = { snapshot: 500, newest: second.newest, unsettled: second.unsettled };
    openRecord(directory, second, { times, names: [], rootMtime: 1 }, hasher);
    expect(readTreeRecord(directory, hasher).unsettled).toBe(1001);
    settleRecord(directory, times, { complete: false }, hasher);
    expect(readTreeRecord(directory, hasher)).toMatchObject({ newest: 1001, unsettled: 1000 });
    settleRecord(directory, times, { complete: true }, hasher);
    expect(readTreeRecord(directory, hasher)).toMatchObject({ newest: 1001, unsettled: 0 });
  });
});

describe('a record that was written', () => {
  const times = { snapshot: 1000, newest: 0, unsettled: 0 };

  beforeEach(() => {
    openRecord(
      directory,
      { ...EMPTY, version: 1 },
      { times, names: ['vda', 'vdb'], rootMtime: 1000, zerosSkipped: ['vda'] },
      hasher,
    );
  });

  it('is never believed with other content after one bit was flipped', () => {
    const written = readTreeRecord(directory, hasher);
    const bytes = fs.readFileSync(file);
    for (let bit = 0; bit < bytes.length * 8; bit++) {
      const flipped = Buffer.from(bytes);
      flipped[bit >> 3]! ^= 1 << (bit & 7);
      fs.writeFileSync(file, flipped);
      expect([written, EMPTY]).toContainEqual(readTreeRecord(directory, hasher));
    }
  });

  it('is believed without a checksum, as older versions wrote it', () => {
    const written = readTreeRecord(directory, hasher);
    const { checksum, ...older } = JSON.parse(fs.readFileSync(file, 'utf8'));
    expect(checksum).toMatch(/^[0-9a-f]{16}$/);
    fs.writeFileSync(file, JSON.stringify(older));
    expect(readTreeRecord(directory, hasher)).toEqual(written);
  });
});

describe('the record of a tree without chunks of zeros', () => {
  const times = { snapshot: 1000, newest: 0, unsettled: 0 };
  const opened = { times, names: ['vda', 'vdb'], rootMtime: 1000, zerosSkipped: ['vda', 'vdb'] };

  it('forgets a disk when a session has shown its chunks of zeros, and has ended', () => {
    openRecord(directory, readTreeRecord(directory, hasher), opened, hasher);
    settleRecord(directory, times, { complete: true }, hasher);
    expect(readTreeRecord(directory, hasher)).toMatchObject({ zerosSkipped: ['vda', 'vdb'] });
    settleRecord(directory, times, { complete: false, zerosShown: ['vda'] }, hasher);
    expect(readTreeRecord(directory, hasher)).toMatchObject({ zerosSkipped: ['vdb'] });
  });
});

describe('rootMtime', () => {
  const record = { ...EMPTY, version: 1 as const, names: ['vda', 'vda.xxh64'], rootMtime: 900 };

  it('stays while the names are the same, in any order', () => {
    expect(rootMtime(record, ['vda.xxh64', 'vda'], 1000)).toBe(900);
  });

  it('changes with the names, to something later', () => {
    expect(rootMtime(record, ['vda', 'vda.xxh64', 'vdb'], 1000)).toBe(1000);
    expect(rootMtime(record, ['vda'], 1000)).toBe(1000);
    expect(rootMtime(record, ['vda'], 800)).toBe(901);
  });

  it('is that of the snapshot the first time', () => {
    expect(rootMtime({ ...EMPTY, version: 1 }, [], 1000)).toBe(1000);
  });
});
