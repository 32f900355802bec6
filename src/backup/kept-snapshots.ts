import * as fs from 'node:fs';
import * as path from 'node:path';
import * as v from 'valibot';
import { fsyncDirectory, makeDirectory } from '../host/durable.js';
import { Journal, type JournalEntry, readPending } from '../session/journal.js';
import type { StateDirectory } from '../session/state-directory.js';
import { type UndoContext, type UndoHandler, type UndoHandlers, undoAll } from '../session/undo.js';
import { adviseKeeping, type KeepAdvice } from '../snapshot/lvm/keep.js';
import {
  CHECKPOINT_KIND,
  LVM_KIND,
  OVERLAY_KIND,
  PULL_KIND,
  REFLINK_KIND,
} from '../snapshot/watched-kinds.js';
import { readTracking } from '../tracking/record.js';
import type { TrackerKind } from '../tracking/tracker.js';

/*
 * A snapshot that a tracker needs in the next session outlives its own: at the end of the session its entry moves from the session's
 * journal to the journal of what is kept, and the one kept before it is undone. Which one is needed the tracking record says alone,
 * for it is what the next session goes by: after a session that was cut off that is still the older one.
 */

/** Journal kinds of the snapshots that can be kept, and the tracker that goes on from them. */
const NEEDED_BY: Readonly<Record<string, TrackerKind>> = {
  [OVERLAY_KIND]: 'overlay',
  [LVM_KIND]: 'thin',
  [REFLINK_KIND]: 'reflink',
  [CHECKPOINT_KIND]: 'bitmap',
};

/** What speaks against leaving a snapshot, by journal kind. */
const ADVICE: Readonly<Record<string, (entry: JournalEntry) => Promise<KeepAdvice | undefined>>> = {
  [LVM_KIND]: adviseKeeping,
};

/** Part of the data of every such entry. */
const Made = v.object({
  /** Id of the session that made it. */
  session: v.string(),
  /** The disk that it freezes, or the disks. */
  target: v.optional(v.string()),
  targets: v.optional(v.array(v.string())),
});

/** The disks that a snapshot freezes; a checkpoint is one of several. */
export function targetsOf({ data }: JournalEntry): readonly string[] {
  const made = v.safeParse(Made, data);
  if (!made.success) return [];
  const { target, targets = [] } = made.output;
  return target === undefined ? targets : [target];
}

export interface Holder {
  readonly name: string;
  readonly state: StateDirectory;
}

/** What the journal holds of the snapshot that freezes a disk, if it is of a kind that can be kept. */
export function snapshotOf(journal: Journal, target: string): JournalEntry | undefined {
  return journal
    .pending()
    .find(
      ({ kind, data }) =>
        [OVERLAY_KIND, LVM_KIND, REFLINK_KIND, PULL_KIND].includes(kind) && data.target === target,
    );
}

/** Whether the next session goes on from this snapshot, for one of its disks at least. */
function isNeeded(entry: JournalEntry, holder: Holder): boolean {
  return targetsOf(entry).some((target) => isNeededFor(target, entry, holder));
}

function isNeededFor(target: string, { kind, data }: JournalEntry, { name, state }: Holder): boolean {
  const tracker = Object.hasOwn(NEEDED_BY, kind) ? NEEDED_BY[kind] : undefined;
  const made = v.safeParse(Made, data);
  if (tracker === undefined || !made.success) return false;
  // A snapshot that was tried with the guest frozen may have failed, and a second one of the same session was made.
  if (kind === OVERLAY_KIND && data.made !== true) return false;
  // Its merge was begun (cleanup --kept), and has to come to its end.
  if (kind === OVERLAY_KIND && data.committing === true) return false;
  const record = readTracking(state.index(name), target);
  if (typeof record !== 'object') return false;
  return record.bases.some(
    (base) => base.tracker === tracker && (base.madeBy ?? record.session) === made.output.session,
  );
}

function sameSnapshot(one: JournalEntry, other: JournalEntry): boolean {
  const { session, target } = one.data;
  // One session makes one checkpoint, of all its disks.
  return one.kind === other.kind && session === other.data.session && target === other.data.target;
}

/** Records a snapshot among those that are kept, once: from here on its session has nothing to undo of it. */
function keep(entry: JournalEntry, { name, state }: Holder): void {
  const file = state.keptJournal(name);
  makeDirectory(path.dirname(file));
  const journal = new Journal(file);
  try {
    if (journal.pending().some((other) => sameSnapshot(other, entry))) return;
    journal.done(journal.intend(entry.kind, entry.data));
  } finally {
    journal.close();
  }
}

/** The handlers, but that they keep what is needed instead of undoing it. */
export function keepingHandlers(handlers: UndoHandlers, holder: Holder): UndoHandlers {
  const keeping =
    (undo: UndoHandler): UndoHandler =>
    async (entry, context) => {
      if (!entry.done || !isNeeded(entry, holder)) return undo(entry, context);
      const advice = await ADVICE[entry.kind]?.(entry);
      if (advice !== undefined) context.reporter.warn(advice.message);
      if (advice?.refused === true) return undo(entry, context);
      keep(entry, holder);
      context.reporter.debug(`the snapshot of disk ${targetsOf(entry).join(', ')} (${entry.kind}) is kept`);
    };
  return Object.fromEntries(
    Object.entries(handlers).map(([kind, undo]) => [
      kind,
      Object.hasOwn(NEEDED_BY, kind) ? keeping(undo) : undo,
    ]),
  );
}

/**
 * Undoes the kept snapshots that no session goes on from any more, or all of them. To be called by whoever holds the lock of `name`.
 * Returns what went wrong; that is tried again the next time.
 */
export async function releaseKept(
  { name, state, ...context }: Holder & Omit<UndoContext, 'journal'>,
  handlers: UndoHandlers,
  which: 'unneeded' | 'all',
): Promise<Error[]> {
  const file = state.keptJournal(name);
  if (!fs.existsSync(file)) return [];
  const journal = new Journal(file);
  try {
    const needed = (entry: JournalEntry) => which === 'unneeded' && isNeeded(entry, { name, state });
    const problems = await undoAll({ ...context, journal }, handlers, new Set(), needed);
    if (journal.pending().length > 0) journal.compact();
    else removeKept(path.dirname(file));
    return problems;
  } finally {
    journal.close();
  }
}

function removeKept(directory: string): void {
  fs.rmSync(directory, { recursive: true, force: true });
  fsyncDirectory(path.dirname(directory));
}

/** The snapshots that are kept of one VM, the newest first. For those who do not hold its lock. */
export function keptSnapshots({ name, state }: Holder): JournalEntry[] {
  const file = state.keptJournal(name);
  return fs.existsSync(file) ? readPending(file) : [];
}

/** The checkpoints from which the next session goes on, by disk. */
export function keptCheckpoints(holder: Holder): ReadonlyMap<string, string> {
  const found = new Map<string, string>();
  for (const entry of keptSnapshots(holder).filter(({ kind }) => kind === CHECKPOINT_KIND)) {
    for (const target of targetsOf(entry)) {
      if (isNeededFor(target, entry, holder)) found.set(target, String(entry.data.checkpoint));
    }
  }
  return found;
}
