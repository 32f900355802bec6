import fc from 'fast-check';
import { type ExtentMap, ZERO_SOURCE } from '../../src/image/extent-map.js';
import { ExtentMapBuilder } from '../../src/image/extent-map-builder.js';

export interface Extent {
  readonly length: number;
  /** ZERO_SOURCE for zeros. */
  readonly source: number;
  readonly offset: number;
}

/** Lists of short extents, many of which continue each other. */
export const extents: fc.Arbitrary<Extent[]> = fc.array(
  fc.record({
    length: fc.nat(6),
    source: fc.constantFrom(0, 1, 254, ZERO_SOURCE),
    offset: fc.nat(12),
  }),
  { maxLength: 30 },
);

export function mapOf(list: readonly Extent[]): ExtentMap {
  const builder = new ExtentMapBuilder();
  for (const { length, source, offset } of list) {
    if (source === ZERO_SOURCE) builder.addZeros(length);
    else builder.addData(length, source, offset);
  }
  return builder.finish();
}
