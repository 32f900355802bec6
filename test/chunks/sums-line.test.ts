import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { formatHash } from '../../src/chunks/paths.js';
import { SumsLines, skippedSumsLine, sumsLine, sumsLineLength } from '../../src/chunks/sums-line.js';

describe('sums', () => {
  it('writes a hash with its leading zeros', () => {
    expect(formatHash(0, 0)).toBe('0000000000000000');
    expect(formatHash(0xef46db37, 0x51d8e999)).toBe('ef46db3751d8e999');
    expect(formatHash(1, 0xffffffff)).toBe('00000001ffffffff');
    expect(formatHash(-1, -1)).toBe('ffffffffffffffff');
  });

  it('has lines as xxhsum writes them', () => {
    const hash = 'ef46db3751d8e999';
    const own = { directory: 'vda', layout: 'chunkmount' } as const;
    const chunkfs = { directory: 'mail01_vda', layout: 'chunkfs' } as const;
    expect(sumsLine(own, 0x1a2f3, hash)).toBe('ef46db3751d8e999  vda/0001a2/0001a2f3\n');
    expect(sumsLine(chunkfs, 0x1a2f3, hash)).toBe('ef46db3751d8e999  mail01_vda/00/00/00/00/00/01/a2/f3\n');
    expect(skippedSumsLine(own, 0x1a2f3, hash)).toBe('#ef46db3751d8e999 vda/0001a2/0001a2f3\n');
  });

  it('knows the length of its lines', () => {
    const directory = fc.stringMatching(/^[a-z][a-z0-9]{0,15}$/);
    const layout = fc.constantFrom('chunkmount', 'chunkfs');
    fc.assert(
      fc.property(directory, layout, fc.nat(2 ** 31), (name, kind, index) => {
        const shape = { directory: name, layout: kind } as const;
        for (const line of [sumsLine, skippedSumsLine])
          expect(line(shape, index, formatHash(index, index))).toHaveLength(sumsLineLength(shape));
      }),
    );
  });

  it('makes many lines as it makes one, in any order', () => {
    const layout = fc.constantFrom('chunkmount', 'chunkfs');
    // Often the same: what a line has in common with the one before is not written again.
    const word = fc.oneof(
      { weight: 4, arbitrary: fc.nat(1) },
      { weight: 1, arbitrary: fc.integer({ min: 0, max: 2 ** 32 - 1 }) },
    );
    const line = fc.record({
      index: fc.oneof({ weight: 1, arbitrary: fc.nat(2 ** 31) }, { weight: 4, arbitrary: fc.nat(600) }),
      high: word,
      low: word,
      skipped: fc.boolean(),
    });
    fc.assert(
      fc.property(layout, fc.array(line, { minLength: 1, maxLength: 20 }), (kind, many) => {
        const shape = { directory: 'vda', layout: kind } as const;
        const lines = new SumsLines(shape);
        for (const { index, high, low, skipped } of many) {
          const one = (skipped ? skippedSumsLine : sumsLine)(shape, index, formatHash(high, low));
          expect(Buffer.from(lines.line(index, high, low, skipped)).toString()).toBe(one);
        }
      }),
    );
  });
});
