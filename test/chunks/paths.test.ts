import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import {
  chunkName,
  chunkPath,
  directoryName,
  formatHash,
  parseChunkName,
  parseDirectoryName,
  sumsLine,
  sumsLineLength,
} from '../../src/chunks/paths.js';

const chunk = fc.integer({ min: 0, max: 2 ** 32 - 1 });
const directory = fc.integer({ min: 0, max: 2 ** 24 - 1 });

describe('names of chunks', () => {
  it.each([
    [0, '000000/00000000'],
    [1, '000000/00000001'],
    [255, '000000/000000ff'],
    [256, '000001/00000100'],
    [0x1a2f3, '0001a2/0001a2f3'],
    [2 ** 31, '800000/80000000'],
    [2 ** 32 - 1, 'ffffff/ffffffff'],
  ])('puts chunk %i at %s', (index, path) => {
    expect(chunkPath(index)).toBe(path);
  });

  it('are read back as what they were made from', () => {
    fc.assert(
      fc.property(chunk, directory, (index, number) => {
        expect(parseChunkName(chunkName(index))).toBe(index);
        expect(parseDirectoryName(directoryName(number))).toBe(number);
      }),
    );
  });

  it('sort as their chunks do', () => {
    fc.assert(
      fc.property(chunk, chunk, (a, b) => {
        expect(Math.sign(a - b)).toBe(chunkPath(a) < chunkPath(b) ? -1 : chunkPath(a) > chunkPath(b) ? 1 : 0);
      }),
    );
  });

  it.each([
    '',
    '0',
    '0000000',
    '000000000',
    '0000000G',
    '0000000A',
    '0x000001',
    ' 0000001',
    '-0000001',
    '0000001\n',
  ])('are canonical: %j is no chunk', (name) => {
    expect(parseChunkName(name)).toBe(-1);
  });

  it.each(['', '00000', '0000000', '00000G', '00000A', '0x0001'])(
    'are canonical: %j is no directory',
    (name) => {
      expect(parseDirectoryName(name)).toBe(-1);
    },
  );

  it('have one spelling only', () => {
    fc.assert(
      fc.property(
        fc.string({ minLength: 6, maxLength: 8, unit: fc.constantFrom(...'09afAFg.x') }),
        (name) => {
          const index = parseChunkName(name);
          const number = parseDirectoryName(name);
          if (index >= 0) expect(chunkName(index)).toBe(name);
          if (number >= 0) expect(directoryName(number)).toBe(name);
        },
      ),
    );
  });
});

describe('sums', () => {
  it('writes a hash with its leading zeros', () => {
    expect(formatHash(0, 0)).toBe('0000000000000000');
    expect(formatHash(0xef46db37, 0x51d8e999)).toBe('ef46db3751d8e999');
    expect(formatHash(1, 0xffffffff)).toBe('00000001ffffffff');
    expect(formatHash(-1, -1)).toBe('ffffffffffffffff');
  });

  it('has lines as xxhsum writes them', () => {
    expect(sumsLine('vda', 0x1a2f3, 'ef46db3751d8e999')).toBe('ef46db3751d8e999  vda/0001a2/0001a2f3\n');
  });

  it('knows the length of its lines', () => {
    fc.assert(
      fc.property(fc.stringMatching(/^[a-z][a-z0-9]{0,15}$/), chunk, (target, index) => {
        expect(sumsLine(target, index, formatHash(index, index))).toHaveLength(sumsLineLength(target));
      }),
    );
  });
});
