import * as fs from 'node:fs';
import { messageOf } from '../errors.js';
import type { Reporter } from '../report/reporter.js';
import { Journal, type JournalEntry } from '../session/journal.js';
import { Lock } from '../session/lock.js';
import { LVM_KIND } from '../snapshot/watched-kinds.js';
import type { Holder } from './kept-snapshots.js';

export interface EstimatedDisk {
  /** What is kept of it. */
  readonly kept: readonly JournalEntry[];
  /** Whether a VM writes to it. */
  readonly live: boolean;
  readonly reporter: Reporter;
}

/**
 * Does `work` for `estimate`, which has no session, with the journal of what is kept: the tracker of thin volumes records there that it
 * holds the metadata of a pool, and if we die meanwhile the end of the next session finds that. Undefined where that is not needed, and
 * while another command works on the VM.
 */
export async function withKeptJournal<T>(
  { name, state }: Holder,
  { kept, live, reporter }: EstimatedDisk,
  work: (journal: Journal | undefined) => Promise<T>,
): Promise<T> {
  if (!live || !kept.some(({ kind }) => kind === LVM_KIND)) return work(undefined);
  const lock = await Lock.acquire(state.locks, name, { command: 'estimate', brief: true }).catch(
    (error: unknown) => {
      reporter.debug(messageOf(error));
      return undefined;
    },
  );
  if (lock === undefined) return work(undefined);
  try {
    const file = state.keptJournal(name);
    // It may have been removed a moment ago.
    if (!fs.existsSync(file)) return await work(undefined);
    const journal = new Journal(file);
    try {
      return await work(journal);
    } finally {
      journal.close();
    }
  } finally {
    lock.release();
  }
}
