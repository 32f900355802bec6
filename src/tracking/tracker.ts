import type { ImageLayer } from '../image/image-layer.js';
import type { ImageSource } from '../image/sources.js';

/** To come: overlay, thin, bitmap, reflink. */
export type TrackerKind = 'still';

/** A frozen disk, before anything of it is read. */
export interface TrackedDisk {
  readonly target: string;
  /** The image itself first, then its backing files. */
  readonly layers: readonly ImageLayer[];
  readonly sources: readonly ImageSource[];
  /** Milliseconds since the epoch: a moment after which its images were looked at. */
  readonly since: number;
}

/** What a tracker keeps of one session for the next: plain JSON, which only that tracker understands. */
export type Facts = Readonly<Record<string, unknown>>;

/** `reason` is a clause: "vda is a block device". */
export type Observation =
  | { readonly kind: 'facts'; readonly facts: Facts }
  | { readonly kind: 'none'; readonly reason: string };

/** Bytes of the disk from `start` up to `end`. */
export interface ByteRange {
  readonly start: number;
  readonly end: number;
}

export type Changes =
  | {
      readonly kind: 'known';
      /** What may have changed, in order; all the rest did not. */
      readonly ranges: readonly ByteRange[];
    }
  | { readonly kind: 'unknown'; readonly reason: string };

/**
 * Knows what may have changed on a disk since an earlier session.
 *
 * Contract:
 * - `observe` is called once a session, when the disk is frozen, before anything of it is read. It changes nothing.
 * - `changesSince` compares what it observed in that earlier session with what it observed now. Where anything is odd it says
 *   unknown: a chunk outside of the ranges is not read.
 * - `stillHolds` is asked when all of the disk has been read: only then are the facts kept for the next session.
 */
export interface Tracker {
  readonly kind: TrackerKind;
  observe(disk: TrackedDisk): Promise<Observation>;
  changesSince(before: Facts, now: Facts): Promise<Changes>;
  stillHolds(facts: Facts): boolean;
}
