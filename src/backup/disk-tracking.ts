import type { ChunkHasher } from '../chunks/chunk-hash.js';
import type { Geometry } from '../chunks/geometry.js';
import { chunkPath, layoutOf } from '../chunks/layout.js';
import { StoredIndex } from '../content-index/index-file.js';
import type { ChunkRange } from '../content-index/pick-samples.js';
import type { ByteRange } from '../image/own-ranges.js';
import type { Distrust, ShownSums } from '../tracking/record.js';
import type { Amount, Facts, TrackerKind } from '../tracking/tracker.js';

/** What is known of the changes of one disk since an earlier session. */
export type DiskChanges =
  | {
      readonly kind: 'known';
      readonly tracker: TrackerKind;
      readonly ranges: readonly ByteRange[];
      /** Fingerprint of the index that they are the changes to. */
      readonly index: string;
      readonly falseZeros: readonly number[];
      readonly fullScan: number;
      readonly sums: ShownSums | undefined;
    }
  | {
      readonly kind: 'unknown';
      readonly reason: string;
      /** Where a tracker knows how much changed, but not what. */
      readonly amount?: (Amount & { readonly tracker: TrackerKind }) | undefined;
    };

/** What the mount command finds out about the changes of one disk, for the daemon. Plain JSON. */
export interface DiskTracking {
  readonly session: string;
  /** Milliseconds since the epoch. */
  readonly begun: number;
  readonly changes: DiskChanges;
  /** What the trackers need in the next session. */
  readonly observed: readonly {
    readonly tracker: TrackerKind;
    readonly facts: Facts;
    /** See Observation. */
    readonly madeBy?: string | undefined;
  }[];
  readonly distrusted: readonly Distrust[];
  /** Share of the unchanged chunks that is read nevertheless, 0 to 1. */
  readonly audit: number;
}

/** Why the index is not the one that belongs to `fingerprint`, as a clause; undefined if it is. */
export function indexObstacle(
  found: StoredIndex | string | undefined,
  cut: Geometry,
  fingerprint: string,
  hasher: ChunkHasher,
): string | undefined {
  if (!(found instanceof StoredIndex)) return found ?? 'its index is gone';
  const { chunkSize, diskSize } = found.header;
  if (chunkSize !== cut.chunkSize) return `the chunk size was ${chunkSize / 1024}K`;
  if (diskSize !== cut.size) return `the disk was resized from ${diskSize} bytes`;
  if (found.fingerprint(hasher) === fingerprint) return undefined;
  return 'its index is another one than the last complete session left';
}

/** The chunks that ranges touch: in order, and apart from each other. */
export function chunkRanges(ranges: readonly ByteRange[], cut: Geometry): ChunkRange[] {
  const found: { first: number; end: number }[] = [];
  for (const { start, end } of [...ranges].sort((a, b) => a.start - b.start)) {
    const first = Math.max(0, Math.floor(start / cut.chunkSize));
    const stop = Math.min(cut.chunkCount, Math.ceil(end / cut.chunkSize));
    const last = found.at(-1);
    if (last !== undefined && first <= last.end) last.end = Math.max(last.end, stop);
    else if (first < stop) found.push({ first, end: stop });
  }
  return found;
}

/** A sentence for the user. */
export function distrustSentence(target: string, { tracker, chunk, at }: Distrust): string {
  const when = new Date(at).toISOString();
  return (
    `disk ${target}: chunk ${target}/${chunkPath(layoutOf('chunkmount'), chunk)} had changed although tracker ${tracker} said no (${when}): ` +
    'it is not believed until the whole disk was read in another session'
  );
}
