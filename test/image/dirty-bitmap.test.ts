import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { DirtyRanges } from '../../src/image/dirty-bitmap.js';

/** As qemu-img map prints an extent; dirty ones are no data. */
function line(start: number, length: number, dirty: boolean): string {
  return JSON.stringify({ start, length, depth: 0, present: !dirty, zero: false, data: !dirty });
}

const extents = fc.array(fc.record({ length: fc.integer({ min: 1, max: 2 ** 40 }), dirty: fc.boolean() }));

describe('dirty ranges', () => {
  it('are exactly what is dirty, in order and apart from each other', () => {
    fc.assert(
      fc.property(extents, (given) => {
        const size = given.reduce((sum, { length }) => sum + length, 0);
        const ranges = new DirtyRanges(size);
        const expected: { start: number; end: number }[] = [];
        let start = 0;
        for (const { length, dirty } of given) {
          ranges.add(line(start, length, dirty));
          const last = expected.at(-1);
          if (dirty && last?.end === start) last.end += length;
          else if (dirty) expected.push({ start, end: start + length });
          start += length;
        }
        expect(ranges.finish()).toEqual(expected);
      }),
    );
  });

  it.each([
    ['a gap', [line(0, 512, false), line(1024, 1024, true)]],
    ['an overlap', [line(0, 1024, false), line(512, 1536, true)]],
    ['an end that is too early', [line(0, 1024, true)]],
    ['an end that is too late', [line(0, 4096, false)]],
    ['nothing at all', []],
    ['an extent without length', [line(0, 0, true), line(0, 2048, false)]],
    ['another answer', ['{"start": 0, "length": "2048"}']],
    ['no JSON', ['qemu-img: warning']],
  ])('are refused with %s', (_, lines) => {
    const read = () => {
      const ranges = new DirtyRanges(2048);
      for (const one of lines) ranges.add(one);
      return ranges.finish();
    };
    expect(read).toThrow();
  });
});
