import * as fs from 'node:fs';
import * as os from 'node:os';
import * as path from 'node:path';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import {
  type ChainRecord,
  copiesBelow,
  parseChainRecord,
  readChainRecord,
} from '../../src/chain/chain-record.js';
import { choosePoint, openChain } from '../../src/chain/restore-point.js';

function point(number: number, time: string, backing: string | null, target = 'vda') {
  const text = String(number).padStart(4, '0');
  const sums = { size: 10, sha256: 'a'.repeat(64), mtime: 1.5, virtualSize: 512 };
  const disks = [{ target, file: `${target}.${text}.qcow2`, backing, ...sums }];
  return { number, id: `s${number}`, time, consistency: 'crash', definition: `${text}.xml`, disks };
}

const record: ChainRecord = {
  format: 'chunkmount-chain',
  version: 1,
  name: 'mail01',
  uuid: 'u',
  points: [
    point(1, '2026-11-19T22:00:00.000Z', null),
    point(2, '2026-11-20T22:00:00.000Z', 'vda.0001.qcow2'),
    point(4, '2026-11-21T22:00:00.000Z', 'vda.0002.qcow2'),
  ],
};

const parsed = (change: (points: ReturnType<typeof point>[]) => unknown[]) => () =>
  parseChainRecord(JSON.stringify({ ...record, points: change(structuredClone(record.points)) }));

describe('chain.json', () => {
  it('is read as it was written', () => {
    expect(parseChainRecord(JSON.stringify(record))).toEqual(record);
    expect(copiesBelow(record, 'vda.0004.qcow2').map(({ file }) => file)).toEqual([
      'vda.0004.qcow2',
      'vda.0002.qcow2',
      'vda.0001.qcow2',
    ]);
  });

  it.each<[string, (points: ReturnType<typeof point>[]) => unknown[]]>([
    [
      'a file elsewhere',
      ([first]) => [{ ...first, disks: [{ ...first!.disks[0], file: '../vda.0001.qcow2' }] }],
    ],
    ['a file of another disk', ([first]) => [{ ...first, disks: [{ ...first!.disks[0], target: 'vdb' }] }]],
    ['a definition elsewhere', ([first]) => [{ ...first, definition: '/etc/passwd' }]],
    ['a copy on itself', () => [point(1, record.points[0]!.time, 'vda.0001.qcow2')]],
    ['a copy on a later one', () => [point(1, record.points[0]!.time, 'vda.0002.qcow2')]],
    [
      'a copy on one of another disk',
      ([first]) => [first, point(2, record.points[1]!.time, 'vda.0001.qcow2', 'vdb')],
    ],
    [
      'a copy twice, on one that lies on it',
      ([first, second]) => [
        first,
        second,
        { ...second, number: 3, disks: [{ ...first!.disks[0], backing: 'vda.0002.qcow2' }] },
      ],
    ],
    ['two points of one number', ([first]) => [first, first]],
    ['points in disorder', ([first, second]) => [second, first]],
    ['a negative size', ([first]) => [{ ...first, disks: [{ ...first!.disks[0], size: -1 }] }]],
    ['a time that is none', () => [point(1, 'yesterday', null)]],
  ])('is refused with %s', (_, change) => {
    expect(parsed(change)).toThrow();
  });

  it('is refused, and nothing else happens, whatever else it holds', () => {
    fc.assert(
      fc.property(fc.jsonValue(), (value) => {
        expect(() => parseChainRecord(JSON.stringify(value))).toThrow();
        expect(parsed(() => [value])).toThrow();
      }),
    );
  });

  it('that is damaged is an error with a hint; none is none', () => {
    const directory = fs.mkdtempSync(path.join(os.tmpdir(), 'cm-chain-'));
    try {
      expect(readChainRecord(directory)).toBeUndefined();
      expect(() => openChain(directory)).toThrow(/holds no chain/);
      fs.writeFileSync(path.join(directory, 'chain.json'), '{');
      expect(() => readChainRecord(directory)).toThrow(/chain.json is damaged/);
    } finally {
      fs.rmSync(directory, { recursive: true });
    }
  });
});

describe('a point is chosen', () => {
  it.each([
    ['latest', 4],
    ['1', 1],
    ['2', 2],
    ['2026-11-20', 2],
    ['2026-11-30', 4],
    ['2026-11-20T21:59:59Z', 1],
    ['2026-11-20T22:00:00Z', 2],
    ['2026-11-21T00:00:00+02:00', 2],
    ['2026-11-20 22:00', 2],
  ])('by %s', (at, number) => {
    expect(choosePoint(record, at).number).toBe(number);
  });

  it.each([
    '3',
    '0',
    '2026-11-18',
    'yesterday',
    '',
    '-1',
    '2026-11-99',
    '2026-11-20T25:00',
    '2026-11-20Z',
    '2026-11-20 10 PM',
  ])('not by %j', (at) => {
    expect(() => choosePoint(record, at)).toThrow(/there is no point/);
  });
});
