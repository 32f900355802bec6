import type { JournalEntry } from '../session/journal.js';
import {
  CHECKPOINT_KIND,
  LVM_KIND,
  OVERLAY_KIND,
  PULL_KIND,
  REFLINK_KIND,
} from '../snapshot/watched-kinds.js';
import type { TrackedDisk, Tracker, TrackerKind } from './tracker.js';

interface LazyTracker {
  readonly kind: TrackerKind;
  /** Journal kinds of the snapshots that it goes by. Undefined: it needs none. */
  readonly goesBy?: readonly string[];
  load(): Promise<Tracker>;
}

/**
 * All there are, the best first: what reads least, and is the most certain. Each is loaded when a disk may need it: all of them
 * take a tenth of a second, and 12 MiB in the daemon.
 */
const TRACKERS: readonly LazyTracker[] = [
  { kind: 'still', load: async () => (await import('./still.js')).stillTracker },
  {
    kind: 'bitmap',
    goesBy: [PULL_KIND, CHECKPOINT_KIND],
    load: async () => (await import('./bitmap.js')).bitmapTracker,
  },
  {
    kind: 'overlay',
    goesBy: [OVERLAY_KIND],
    load: async () => (await import('./overlay.js')).overlayTracker,
  },
  { kind: 'thin', goesBy: [LVM_KIND], load: async () => (await import('./thin.js')).thinTracker },
  {
    kind: 'reflink',
    goesBy: [REFLINK_KIND],
    load: async () => (await import('./reflink.js')).reflinkTracker,
  },
];

/** The trackers that may know something of a disk: what freezes it, or was kept of it, is of a kind that they go by. */
export function trackersFor({ snapshot, kept = [] }: TrackedDisk): Promise<Tracker[]> {
  const made: readonly JournalEntry[] = snapshot === undefined ? kept : [snapshot, ...kept];
  const wanted = TRACKERS.filter(
    ({ goesBy }) => goesBy === undefined || made.some(({ kind }) => goesBy.includes(kind)),
  );
  return Promise.all(wanted.map(({ load }) => load()));
}

export async function trackerOf(kind: TrackerKind): Promise<Tracker> {
  return TRACKERS.find((tracker) => tracker.kind === kind)!.load();
}
