import type { ManifestDisk } from '../chunks/manifest.js';
import { formatHash } from '../chunks/paths.js';
import { usage } from '../errors.js';
import type { Sums } from './sums.js';

/** A disk with its sums: all that a comparison needs, no chunk is read. */
export interface SummedDisk {
  readonly disk: ManifestDisk;
  readonly sums: Pick<Sums, 'hashes' | 'lost'>;
}

/** Chunks in a row. */
export interface ChunkRange {
  readonly first: number;
  readonly count: number;
}

/** Whether a chunk has the same content in both. One that only one of them has differs, and so does one whose hash is lost. */
function isSame(a: SummedDisk, b: SummedDisk, index: number): boolean {
  if (index >= a.disk.chunkCount || index >= b.disk.chunkCount) return false;
  if (a.sums.lost?.[index] === 1 || b.sums.lost?.[index] === 1) return false;
  const [left, right] = [a.sums.hashes, b.sums.hashes];
  return left[index * 2] === right[index * 2] && left[index * 2 + 1] === right[index * 2 + 1];
}

/** The chunks that differ, in ascending ranges that do not touch. Throws a usage error for disks with other chunk sizes. */
export function differingRanges(a: SummedDisk, b: SummedDisk): ChunkRange[] {
  if (a.disk.chunkSize !== b.disk.chunkSize) {
    throw usage(
      `the chunks of ${a.disk.target} have ${a.disk.chunkSize} bytes in one tree and ${b.disk.chunkSize} in the other`,
      { hint: 'only backups of one chunk size can be compared' },
    );
  }
  const ranges: ChunkRange[] = [];
  const end = Math.max(a.disk.chunkCount, b.disk.chunkCount);
  let first = -1;
  for (let index = 0; index <= end; index++) {
    const differs = index < end && !isSame(a, b, index);
    if (differs && first < 0) first = index;
    if (!differs && first >= 0) {
      ranges.push({ first, count: index - first });
      first = -1;
    }
  }
  return ranges;
}

/** The hash of a chunk as the sums have it: 16 hex digits, or `none`. */
export function hashText({ disk, sums }: SummedDisk, index: number): string {
  if (index >= disk.chunkCount || sums.lost?.[index] === 1) return 'none';
  return formatHash(sums.hashes[index * 2]!, sums.hashes[index * 2 + 1]!);
}
