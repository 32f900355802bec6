import type { ExtentMap } from '../image/extent-map.js';
import type { ImageLayer } from '../image/image-layer.js';
import type { ByteRange } from '../image/own-ranges.js';
import type { ImageSource } from '../image/sources.js';
import type { Virsh } from '../libvirt/virsh.js';
import type { Reporter } from '../report/reporter.js';
import type { Journal, JournalEntry } from '../session/journal.js';

/** Names of all trackers: what `--track` takes. */
export const TRACKER_KINDS = ['still', 'bitmap', 'overlay', 'thin', 'reflink'] as const;

export type TrackerKind = (typeof TRACKER_KINDS)[number];

/** A disk, before anything of it is read. */
export interface TrackedDisk {
  readonly target: string;
  /** The image itself first, then its backing files. */
  readonly layers: readonly ImageLayer[];
  readonly sources: readonly ImageSource[];
  readonly extents: ExtentMap;
  /** What the image itself holds of it, zeros too; there where an overlay of an earlier session is kept. */
  readonly own?: readonly ByteRange[] | undefined;
  /** Milliseconds since the epoch: a moment after which its images were looked at. */
  readonly since: number;
  /** What the journal holds of the snapshot that freezes it. Undefined: nothing was made for it (or nothing freezes it: `estimate`). */
  readonly snapshot?: JournalEntry | undefined;
  /** What the journal holds of the snapshots of it that earlier sessions left. */
  readonly kept?: readonly JournalEntry[] | undefined;
  /** The snapshot is to outlive the session, where it can. */
  readonly keep: boolean;
  /** The VM that goes on writing to it (`estimate`). */
  readonly live?: { readonly virsh: Virsh; readonly uuid: string } | undefined;
}

/** What a tracker keeps of one session for the next: plain JSON, which only that tracker understands. */
export type Facts = Readonly<Record<string, unknown>>;

/** `reason` is a clause: "vda is a block device". */
export type Observation =
  | {
      readonly kind: 'facts';
      readonly facts: Facts;
      /** Whether the next session can go on from them. Else they are good for comparing with the last one only. */
      readonly lasting: boolean;
      /** Id of the session whose snapshot the next session goes on from; this one if undefined. */
      readonly madeBy?: string | undefined;
    }
  | { readonly kind: 'none'; readonly reason: string };

export type Changes =
  | {
      readonly kind: 'known';
      /** What may have changed, in order; all the rest did not. */
      readonly ranges: readonly ByteRange[];
    }
  | {
      readonly kind: 'unknown';
      readonly reason: string;
      /** Where it is known how much changed, but not what. */
      readonly amount?: Amount | undefined;
    };

/** Bytes that changed, in pieces of `granularity` bytes that may lie anywhere. */
export interface Amount {
  readonly bytes: number;
  readonly granularity: number;
}

/** What a tracker may use while it compares. */
export interface Comparing {
  readonly disk: TrackedDisk;
  /**
   * Of the session: what has to be changed on the host for a moment is recorded here before, and undone before `changesSince` returns.
   * Undefined: nothing may be changed (`estimate`).
   */
  readonly journal?: Journal | undefined;
  readonly reporter: Reporter;
  readonly signal?: AbortSignal | undefined;
}

/**
 * Knows what may have changed on a disk since an earlier session.
 *
 * Contract:
 * - `observe` is called once a session, when the disk is frozen, before anything of it is read. It changes nothing.
 * - `changesSince` compares what it observed in that earlier session with what it observed now. Where anything is odd it says
 *   unknown: a chunk outside of the ranges is not read.
 * - `stillHolds` is asked when all of the disk has been read: only then are lasting facts kept for the next session.
 * - A tracker that goes on from a snapshot of the last session finds it on the host: see backup/kept-snapshots.ts.
 */
export interface Tracker {
  readonly kind: TrackerKind;
  observe(disk: TrackedDisk): Promise<Observation>;
  changesSince(before: Facts, now: Facts, comparing: Comparing): Promise<Changes>;
  stillHolds(facts: Facts): boolean;
}
