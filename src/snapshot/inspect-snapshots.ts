import { type ChunkmountError, failed, messageOf } from '../errors.js';
import { Virsh } from '../libvirt/virsh.js';
import type { Journal, JournalEntry } from '../session/journal.js';
import { HOLD_KIND, writtenMeanwhile } from './hold.js';
import { findLvmSnapshot, readLvmRecord } from './lvm/undo.js';
import { isStillPaused, PAUSE_KIND, writtenWhilePaused } from './pause.js';
import { isJobThere } from './pull/job.js';
import { readEnd } from './pull/place.js';
import { readJobRecord } from './pull/record.js';
import { cloneDamage, readCloneRecord } from './reflink/clone-record.js';
import { LVM_KIND, PULL_JOB_KIND, REFLINK_KIND } from './watched-kinds.js';

/** Overwritten, resumed or run full: what was read since is worth nothing. */
function lost(what: string, hint: string): ChunkmountError {
  return failed(`${what}: what was copied from it is not a good backup`, { hint });
}

async function inspectLvm(entry: JournalEntry): Promise<ChunkmountError[]> {
  const record = readLvmRecord(entry);
  const snapshot = await findLvmSnapshot(record);
  const name = `${record.group}/${record.name}`;
  if (snapshot === undefined) {
    return entry.done
      ? [lost(`the LVM snapshot ${name} of disk ${record.target} is gone`, 'back it up again')]
      : [];
  }
  if (!snapshot.invalid) return [];
  const hint =
    'back it up again with a larger snapshot: --snapsize=20G, --snapsize=100% or --snap-autoextend';
  return [lost(`the LVM snapshot ${name} of disk ${record.target} ran full`, hint)];
}

function inspectClone(entry: JournalEntry): ChunkmountError[] {
  const record = readCloneRecord(entry);
  const damage = cloneDamage(record);
  return damage === undefined
    ? []
    : [lost(`the clone ${record.clone} of disk ${record.target} ${damage}`, 'back it up again')];
}

function inspectHold(entry: JournalEntry): ChunkmountError[] {
  return writtenMeanwhile(entry.data).map((image) =>
    lost(
      `the frozen image ${image} was written by another program`,
      'find out by which, then back it up again',
    ),
  );
}

async function inspectPause(entry: JournalEntry): Promise<ChunkmountError[]> {
  if (!entry.done) return [];
  const hint = 'back it up again, and leave it paused meanwhile';
  const written = writtenWhilePaused(entry).map((image) =>
    lost(`the image ${image} was written while its VM was to stand still`, hint),
  );
  if (written.length > 0 || (await isStillPaused(entry))) return written;
  return [lost('the VM that was paused for its backup was resumed', hint)];
}

async function inspectPull(entry: JournalEntry): Promise<ChunkmountError[]> {
  const record = readJobRecord(entry);
  if (!entry.done || (await isJobThere(new Virsh({ connect: record.connect }), record))) return [];
  const ended = readEnd(record.directory);
  if (ended === undefined)
    return [lost(`the backup job of ${record.domain.name} ended too early`, 'back it up again')];
  return [lost(ended, 'make room there, or name another place (--overlay-dir=DIR), and back it up again')];
}

const INSPECTORS: Readonly<
  Record<string, (entry: JournalEntry) => Promise<ChunkmountError[]> | ChunkmountError[]>
> = {
  [LVM_KIND]: inspectLvm,
  [REFLINK_KIND]: inspectClone,
  [HOLD_KIND]: inspectHold,
  [PAUSE_KIND]: inspectPause,
  [PULL_JOB_KIND]: inspectPull,
};

/** What became of the frozen disks. All is well if both are empty. */
export interface Inspection {
  /** Why they did not stay as they were. */
  readonly lost: readonly ChunkmountError[];
  /** Why that cannot be told of some. */
  readonly unknown: readonly ChunkmountError[];
}

function unknown(error: unknown): ChunkmountError {
  return failed(`whether the frozen disks stayed as they were cannot be told: ${messageOf(error)}`, {
    hint: 'what was copied may be no good backup: mend that, and back it up again',
    cause: error,
  });
}

/**
 * Whether the frozen disks stayed as they were: to be asked after the last read, and before anything is undone. What cannot be told of
 * one keeps nobody from looking at the others. Changes nothing.
 */
export async function inspectSnapshots(journal: Journal): Promise<Inspection> {
  const found = { lost: [] as ChunkmountError[], unknown: [] as ChunkmountError[] };
  for (const entry of journal.pending()) {
    try {
      found.lost.push(...((await INSPECTORS[entry.kind]?.(entry)) ?? []));
    } catch (error) {
      found.unknown.push(unknown(error));
    }
  }
  return found;
}

/** Throws unless the frozen disks are known to have stayed as they were. */
export async function checkSnapshots(journal: Journal): Promise<void> {
  const { lost, unknown } = await inspectSnapshots(journal);
  const [problem] = [...lost, ...unknown];
  if (problem !== undefined) throw problem;
}
