import * as fs from 'node:fs';
import * as path from 'node:path';
import fc from 'fast-check';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { ChunkmountError } from '../../src/errors.js';
import { isSameMap, parseFileExtent, readFileExtents } from '../../src/image/file-extents.js';
import { temporaryDirectory } from '../support/images.js';
import { extents, mapOf } from './extents.js';

describe('a line of filefrag -v -b1', () => {
  it.each([
    ['   0:        0..  999423:    2195456..   3194879: 999424:             shared', 0, 999424, 2195456],
    ['   1:   999424.. 1003519:   10731520..  10735615:   4096:    3194880: shared', 999424, 4096, 10731520],
    [
      '   3: 12582912..12587007:   10584064..  10588159:   4096:   1:  last,shared,eof',
      12582912,
      4096,
      10584064,
    ],
    ['   3: 4096..8191: 4096..8191: 4096:  merged,shared', 4096, 4096, 4096],
    [
      '   3:  8388608..10485759:   13631488..  15728639: 2097152:   72351744: unwritten,shared',
      8388608,
      2097152,
      'zeros',
    ],
    [
      '   3:  8388608..10485759:   13631488..  15728639: 2097152:   72351744: last,unwritten,eof',
      8388608,
      2097152,
      'zeros',
    ],
    // What this file alone has, no other shares.
    ['   1:      244..     244:        780..       780:      1:            ', 244, 1, undefined],
    ...[
      'encoded',
      'inline',
      'not_aligned',
      'delalloc',
      'unknown_loc',
      'encrypted',
      'tail_packed',
      '0x10000',
      'new',
    ].map((flag) => [`   0: 0..4095: 8192..12287: 4096: ${flag},shared`, 0, 4096, undefined] as const),
    ['   0: 0..4095: 8192..12287: 4096: unwritten,delalloc', 0, 4096, undefined],
    // More or fewer blocks than bytes.
    ['   0: 0..4095: 8192..9999: 4096: shared', 0, 4096, undefined],
    // 2^53 + 4096.
    ['   0: 0..4095: 9007199254744992..9007199254749087: 4096: shared', 0, 4096, undefined],
  ] as const)('%s', (line, start, length, address) => {
    expect(parseFileExtent(line)).toEqual({ start, length, address });
  });

  it.each([
    'Filesystem type is: 58465342',
    'File size of /proc/self/fd/3 is 12582915 (12587008 blocks of 1 bytes)',
    ' ext:     logical_offset:        physical_offset: length:   expected: flags:',
    '/proc/self/fd/3: 3 extents found',
    '/proc/self/fd/3: 1 extent found',
  ])('%s is none', (line) => {
    expect(parseFileExtent(line)).toBeUndefined();
  });

  it.each([
    '',
    'FIBMAP requires root',
    ' 0: 0..4095: 0..4095: 4097: shared',
    ' 0: 4096..4095: 0..0: 0: shared',
    ' 0: 0..9007199254740992: 0..9007199254740992: 9007199254740993: shared',
    ' 0: -1..4095: 0..4096: 4097: shared',
    ' 0: 0..4095: 0..4095: 4096: shared x',
  ])('%s is refused', (line) => {
    expect(() => parseFileExtent(line)).toThrow(ChunkmountError);
  });

  it('is refused or adds up, whatever it is', () => {
    const number = fc.oneof(fc.nat(9000), fc.bigInt({ min: 0n, max: 2n ** 65n }));
    const flags = fc
      .array(fc.constantFrom('shared', 'last', 'eof', 'unwritten', 'inline', ' ', ''))
      .map(String);
    const parts = fc.tuple(number, number, number, number, number, flags);
    const lines = parts.map(([a, b, c, d, e, f]) => `0: ${a}..${b}: ${c}..${d}: ${e}: ${f}`);
    fc.assert(
      fc.property(fc.oneof(lines, fc.string()), (line) => {
        let extent: ReturnType<typeof parseFileExtent>;
        try {
          extent = parseFileExtent(line);
        } catch (error) {
          expect(error).toBeInstanceOf(ChunkmountError);
          return;
        }
        if (extent === undefined) return;
        expect(extent.length).toBeGreaterThan(0);
        expect(Number.isSafeInteger(extent.start + extent.length)).toBe(true);
        if (typeof extent.address !== 'number') return;
        expect(Number.isSafeInteger(extent.address + extent.length)).toBe(true);
        expect(line).toContain('shared');
      }),
    );
  });
});

describe('filefrag', () => {
  const SIZE = 8192;
  const { PATH } = process.env;
  let directory: string;
  let fd: number;
  beforeEach(() => {
    directory = temporaryDirectory();
    const file = path.join(directory, 'disk.raw');
    fs.writeFileSync(file, Buffer.alloc(SIZE));
    fd = fs.openSync(file, 'r');
  });
  afterEach(() => {
    process.env.PATH = PATH;
    fs.closeSync(fd);
    fs.rmSync(directory, { recursive: true });
  });

  /** What is read from a filefrag that says these lines. */
  function read(...lines: readonly string[]) {
    const script = `#!/bin/sh\ncat <<'END'\n${lines.join('\n')}\nEND\n`;
    fs.writeFileSync(path.join(directory, 'filefrag'), script, { mode: 0o755 });
    process.env.PATH = `${directory}:${PATH}`;
    return readFileExtents(fd);
  }

  const HEAD = 'File size of /proc/self/fd/3 is 8192 (8192 blocks of 1 bytes)';
  const FIRST = '   0:        0..    4095:      65536..     69631:   4096:             shared';
  const END = '/proc/self/fd/3: 1 extent found';

  it('tells where data is; all else is zeros', async () => {
    const expected = mapOf([
      { length: 4096, source: 0, offset: 65536 },
      { length: 4096, source: 255, offset: 0 },
    ]);
    expect(isSameMap(await read(HEAD, FIRST, END), expected)).toBe(true);
  });

  it.each([
    ['was cut off', [HEAD, FIRST], /did not tell all/],
    ['tells another size', [HEAD.replace('8192', '8193'), FIRST, END], /the file changed/],
    ['tells a place twice', [HEAD, FIRST, FIRST, END], /overlap/],
  ])('is not believed when it %s', async (_, lines, reason) => {
    await expect(read(...lines)).rejects.toThrow(reason);
  });
});

it('maps are the same when they tell the same of each byte', () => {
  fc.assert(
    fc.property(extents, extents, (a, b) => {
      const list = (of: typeof a) => {
        const map = mapOf(of);
        return Array.from({ length: map.count }, (_, extent) => [
          map.startOf(extent),
          map.endOf(extent),
          map.sourceOf(extent),
          map.offsetOf(extent),
        ]);
      };
      const same = JSON.stringify(list(a)) === JSON.stringify(list(b));
      expect(isSameMap(mapOf(a), mapOf(b))).toBe(same);
      const moved = a.map((one) => ({ ...one, offset: one.offset + 1 }));
      expect(isSameMap(mapOf(a), mapOf(moved))).toBe(list(a).every(([, , source]) => source === 255));
    }),
  );
});
