import { type ExtentMap, ZERO_SOURCE } from './extent-map.js';
import { ExtentMapBuilder } from './extent-map-builder.js';

function copy(map: ExtentMap, start: number, end: number, into: ExtentMapBuilder): void {
  let extent = map.find(start);
  for (let at = start; at < end; extent++) {
    const length = Math.min(end, map.endOf(extent)) - at;
    const source = map.sourceOf(extent);
    if (source === ZERO_SOURCE) into.addZeros(length);
    else into.addData(length, source, map.offsetOf(extent) + (at - map.startOf(extent)));
    at += length;
  }
}

/**
 * The same disk, of which all is zeros but what lies in `ranges`: from `start` up to `end` each, in bytes of the disk, in order, and
 * apart from each other. What lies beyond the disk's end does not count.
 */
export function zerosOutside(
  map: ExtentMap,
  ranges: readonly { readonly start: number; readonly end: number }[],
): ExtentMap {
  const builder = new ExtentMapBuilder();
  for (const { start, end } of ranges) {
    if (!(builder.end <= start && start <= end))
      throw new RangeError(`no range in order: ${start} to ${end}`);
    if (start >= map.size) break;
    builder.addZeros(start - builder.end);
    copy(map, start, Math.min(end, map.size), builder);
  }
  builder.addZeros(map.size - builder.end);
  return builder.finish();
}
