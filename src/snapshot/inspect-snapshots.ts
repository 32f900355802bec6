import { type ChunkmountError, failed } from '../errors.js';
import { Virsh } from '../libvirt/virsh.js';
import type { Journal, JournalEntry } from '../session/journal.js';
import { HOLD_KIND, writtenMeanwhile } from './hold.js';
import { findLvmSnapshot, readLvmRecord } from './lvm/undo.js';
import { isStillPaused, PAUSE_KIND } from './pause.js';
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
  if (!entry.done || (await isStillPaused(entry))) return [];
  return [
    lost(
      'the VM that was paused for its backup was resumed',
      'back it up again, and leave it paused meanwhile',
    ),
  ];
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

/**
 * Whether the frozen disks stayed as they were: to be asked after the last read, and before anything is undone. Returns why not;
 * empty when all is well; throws when it cannot be told. Changes nothing.
 */
export async function inspectSnapshots(journal: Journal): Promise<ChunkmountError[]> {
  const errors: ChunkmountError[] = [];
  for (const entry of journal.pending()) errors.push(...((await INSPECTORS[entry.kind]?.(entry)) ?? []));
  return errors;
}
