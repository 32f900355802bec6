import { chunkLength } from '../chunks/geometry.js';
import type { ManifestDisk } from '../chunks/manifest.js';
import { type ChunkRange, differingRanges } from './compare.js';
import { readSums, type Sums } from './sums.js';
import type { Tree } from './tree.js';

/** A run of changed chunks. */
export interface ChangedRange extends ChunkRange {
  /** Bytes from the beginning of the disk. */
  readonly offset: number;
  readonly bytes: number;
}

export interface DiskDiff {
  readonly disk: string;
  /** `changed` is in both trees; the others in one only. */
  readonly state: 'compared' | 'added' | 'removed';
  /** In bytes; 0 where the disk does not exist. */
  readonly oldSize: number;
  readonly newSize: number;
  readonly chunkSize: number;
  /** The larger of both, which is what the ranges are of. */
  readonly chunks: number;
  readonly changedChunks: number;
  readonly changedBytes: number;
  readonly ranges: readonly ChangedRange[];
}

/** One tree, as far as a comparison shows it. */
export interface DiffSide {
  readonly tree: string;
  readonly name: string;
  readonly snapshotTime: string;
}

export interface TreeDiff {
  readonly old: DiffSide;
  readonly new: DiffSide;
  readonly disks: readonly DiskDiff[];
}

function side({ root, manifest: { name, snapshotTime } }: Tree): DiffSide {
  return { tree: root, name, snapshotTime };
}

/**
 * What changed from one backup to another, by their sums alone. `targets`: only these disks. Throws errors of kind `integrity` for
 * damaged sums, usage errors for disks of which no tree knows and for different chunk sizes.
 */
export function diffTrees(before: Tree, after: Tree, targets?: readonly string[]): TreeDiff {
  const all = [...before.manifest.disks, ...after.manifest.disks].map(({ target }) => target);
  const disks = [...new Set(targets ?? all)].map((target) => diffDisk(before, after, target));
  return { old: side(before), new: side(after), disks };
}

function find(tree: Tree, target: string): ManifestDisk | undefined {
  return tree.manifest.disks.find((disk) => disk.target === target);
}

function diffDisk(before: Tree, after: Tree, target: string): DiskDiff {
  const [oldDisk, newDisk] = [find(before, target), find(after, target)];
  if (oldDisk === undefined) return whole('added', after.disk(target));
  if (newDisk === undefined) return whole('removed', oldDisk);
  const ranges = differingRanges(
    { disk: oldDisk, sums: intactSums(before, oldDisk) },
    { disk: newDisk, sums: intactSums(after, newDisk) },
  );
  const larger = oldDisk.size > newDisk.size ? oldDisk : newDisk;
  return summary('compared', larger, { oldSize: oldDisk.size, newSize: newDisk.size, ranges });
}

function whole(state: 'added' | 'removed', disk: ManifestDisk): DiskDiff {
  const { size, chunkCount } = disk;
  const sizes = state === 'added' ? { oldSize: 0, newSize: size } : { oldSize: size, newSize: 0 };
  return summary(state, disk, {
    ...sizes,
    ranges: chunkCount === 0 ? [] : [{ first: 0, count: chunkCount }],
  });
}

function summary(
  state: DiskDiff['state'],
  disk: ManifestDisk,
  { oldSize, newSize, ranges }: { oldSize: number; newSize: number; ranges: readonly ChunkRange[] },
): DiskDiff {
  const { chunkSize, chunkCount: chunks } = disk;
  const changed = ranges.map(({ first, count }) => {
    const last = first + count - 1;
    const bytes = (count - 1) * chunkSize + chunkLength(disk, last);
    return { first, count, offset: first * chunkSize, bytes };
  });
  return {
    disk: disk.target,
    state,
    oldSize,
    newSize,
    chunkSize,
    chunks,
    changedChunks: changed.reduce((sum, { count }) => sum + count, 0),
    changedBytes: changed.reduce((sum, { bytes }) => sum + bytes, 0),
    ranges: changed,
  };
}

function intactSums(tree: Tree, disk: ManifestDisk): Sums {
  const sums = readSums(tree, disk);
  const [problem] = sums.problems;
  if (problem !== undefined) throw problem;
  return sums;
}
