import { type ExtentMap, ZERO_SOURCE } from '../image/extent-map.js';
import { BLOCKS } from '../image/file-extents.js';
import type { ByteRange } from '../image/own-ranges.js';
import type { ImageSource } from '../image/sources.js';

/** A disk at one moment, in a file that shares blocks with the file that it was in at another. */
export interface MappedDisk {
  /** Path of that file. */
  readonly file: string;
  /** Disk → offsets in `sources`. */
  readonly extents: ExtentMap;
  readonly sources: readonly ImageSource[];
  /** Offsets in that file → blocks: see readFileExtents. */
  readonly blocks: ExtentMap;
}

type SourceKind = 'zeros' | 'own' | 'below' | 'decoded';

function kindOf({ file, sources }: MappedDisk, number: number): SourceKind {
  if (number === ZERO_SOURCE) return 'zeros';
  const source = sources[number];
  if (source?.kind !== 'file') return 'decoded';
  return source.path === file ? 'own' : 'below';
}

/** Collects ranges in order, and joins those that touch. */
class Ranges {
  readonly found: { start: number; end: number }[] = [];

  add(start: number, end: number): void {
    const last = this.found.at(-1);
    if (last !== undefined && last.end >= start) last.end = Math.max(last.end, end);
    else if (start < end) this.found.push({ start, end });
  }
}

/** What is in one of two lists of ranges, or in both. */
export function union(a: readonly ByteRange[], b: readonly ByteRange[]): ByteRange[] {
  const all = new Ranges();
  for (const { start, end } of [...a, ...b].sort((one, other) => one.start - other.start))
    all.add(start, end);
  return all.found;
}

/** Part of the disk that is one extent in either map. */
interface Part {
  readonly start: number;
  readonly end: number;
  readonly oldOffset: number;
  readonly newOffset: number;
}

/** Adds what the two files have in different blocks. */
function compareBlocks(
  old: ExtentMap,
  now: ExtentMap,
  { start, end, oldOffset, newOffset }: Part,
  ranges: Ranges,
): void {
  const length = end - start;
  for (let done = 0; done < length; ) {
    const a = old.find(oldOffset + done);
    const b = now.find(newOffset + done);
    const rest = Math.min(old.endOf(a) - oldOffset, now.endOf(b) - newOffset, length);
    const source = old.sourceOf(a);
    const address = (map: ExtentMap, extent: number, offset: number) =>
      map.offsetOf(extent) + (offset + done - map.startOf(extent));
    const same =
      source === now.sourceOf(b) &&
      (source === ZERO_SOURCE ||
        (source === BLOCKS && address(old, a, oldOffset) === address(now, b, newOffset)));
    if (!same) ranges.add(start + done, start + rest);
    done = rest;
  }
}

/**
 * The ranges of a disk that are not surely the same at both moments. A range is the same only when it is zeros in both, or in the
 * same blocks, or at the same offset of the same file below, which must not have been written. Both disks have the same size.
 */
export function differentRanges(before: MappedDisk, now: MappedDisk): ByteRange[] {
  const ranges = new Ranges();
  const oldKinds = kinds(before);
  const newKinds = kinds(now);
  const [old, current] = [before.extents, now.extents];
  for (let position = 0, a = 0, b = 0; position < old.size; ) {
    const end = Math.min(old.endOf(a), current.endOf(b));
    const part: Part = {
      start: position,
      end,
      oldOffset: old.offsetOf(a) + position - old.startOf(a),
      newOffset: current.offsetOf(b) + position - current.startOf(b),
    };
    const [from, to] = [old.sourceOf(a), current.sourceOf(b)];
    const kind = oldKinds[from]!;
    if (kind !== newKinds[to] || kind === 'decoded') ranges.add(position, end);
    else if (kind === 'own') compareBlocks(before.blocks, now.blocks, part, ranges);
    else if (kind === 'below' && !isSamePlace(before.sources[from], now.sources[to], part))
      ranges.add(position, end);
    position = end;
    if (position === old.endOf(a)) a++;
    if (position === current.endOf(b)) b++;
  }
  return ranges.found;
}

/** By source number. */
function kinds(disk: MappedDisk): SourceKind[] {
  return Array.from({ length: ZERO_SOURCE + 1 }, (_, number) => kindOf(disk, number));
}

function isSamePlace(a: ImageSource | undefined, b: ImageSource | undefined, part: Part): boolean {
  return a?.kind === 'file' && b?.kind === 'file' && a.path === b.path && part.oldOffset === part.newOffset;
}
