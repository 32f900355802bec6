import fc from 'fast-check';
import { expect, it } from 'vitest';
import { type ExtentMap, ZERO_SOURCE } from '../../src/image/extent-map.js';
import { zerosOutside } from '../../src/image/known-zeros.js';
import { extents, mapOf } from './extents.js';

/** What the map says of each byte. */
function bytes(map: ExtentMap): (string | undefined)[] {
  return Array.from({ length: map.size }, (_, position) => {
    const extent = map.find(position);
    const source = map.sourceOf(extent);
    return source === ZERO_SOURCE
      ? undefined
      : `${source}:${map.offsetOf(extent) + position - map.startOf(extent)}`;
  });
}

/** In order, some next to each other, some empty, and maybe beyond the end of the disk. */
const ranges = fc.array(fc.record({ gap: fc.nat(6), length: fc.nat(6) }), { maxLength: 20 }).map((all) => {
  let at = 0;
  return all.map(({ gap, length }) => {
    const start = at + gap;
    at = start + length;
    return { start, end: at };
  });
});

it('what lies outside of the ranges is zeros, and all else is as it was', () => {
  fc.assert(
    fc.property(extents, ranges, (list, held) => {
      const map = mapOf(list);
      const before = bytes(map);
      const within = (position: number) => held.some(({ start, end }) => start <= position && position < end);
      const after = zerosOutside(map, held);
      expect(bytes(after)).toEqual(before.map((one, position) => (within(position) ? one : undefined)));
    }),
  );
});

it.each([
  ['overlap', [0, 2], [1, 3]],
  ['are not in order', [2, 3], [0, 1]],
  ['end before they begin', [2, 1]],
])('ranges that %s are refused', (_how, ...held) => {
  const map = mapOf([{ length: 8, source: 0, offset: 0 }]);
  const given = (held as [number, number][]).map(([start, end]) => ({ start, end }));
  expect(() => zerosOutside(map, given)).toThrow(RangeError);
});
