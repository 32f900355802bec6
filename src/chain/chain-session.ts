import { randomBytes } from 'node:crypto';
import * as fs from 'node:fs';
import * as path from 'node:path';
import { ChunkmountError, failed, messageOf } from '../errors.js';
import { fsyncDirectory, makeDirectory } from '../host/durable.js';
import type { Reporter } from '../report/reporter.js';
import { Journal, readPending } from '../session/journal.js';
import { Lock } from '../session/lock.js';
import type { StateDirectory } from '../session/state-directory.js';
import { type UndoContext, type UndoHandlers, undoAll } from '../session/undo.js';
import { snapshotUndo } from '../snapshot/select.js';
import { ACCEPT_KIND, finishAccept } from './accept-point.js';
import { COPY_KIND, copyUndo } from './copy-disk.js';
import { MERGE_KIND, mergeUndo } from './merge-layers.js';
import { PULL_KIND, pullUndo } from './pull-layers.js';

/** The first entry of each session here, which tells it from those of mount and dump. There is nothing to undo. */
const SESSION_KIND = 'chain';

const KINDS: ReadonlySet<string> = new Set([SESSION_KIND, ACCEPT_KIND, COPY_KIND, MERGE_KIND, PULL_KIND]);

const HANDLERS: UndoHandlers = {
  ...snapshotUndo,
  ...copyUndo,
  ...mergeUndo,
  ...pullUndo,
  [SESSION_KIND]: async () => {},
};

const NO_BARRIERS: ReadonlySet<string> = new Set();

/**
 * Ends what the journal holds: a point that was accepted, a merge or a pull goes forward; else the VM gets its disks back as they
 * were. Can be repeated. Returns what went wrong; then something is left for the next time.
 */
export async function settleChain(context: UndoContext): Promise<Error[]> {
  const accepted = context.journal.find(ACCEPT_KIND);
  try {
    // First of all, and nothing else if it fails: the layers of a valid point are not to be merged.
    if (accepted !== undefined) finishAccept(accepted, context.journal);
  } catch (error) {
    return [error instanceof Error ? error : new Error(String(error))];
  }
  return undoAll(context, HANDLERS, NO_BARRIERS);
}

export interface ChainSession {
  /** Unique among all sessions of this host. */
  readonly id: string;
  readonly journal: Journal;
}

export interface ChainSessionRequest {
  readonly name: string;
  readonly state: StateDirectory;
  /** For the lock's record. */
  readonly command: string;
  readonly reporter: Reporter;
  /** Stop, and undo what has been begun. */
  readonly signal?: AbortSignal | undefined;
  /** Stop undoing, too. */
  readonly insisted?: AbortSignal | undefined;
  /** See UndoContext. */
  readonly commitTimeoutMs?: number | undefined;
}

function remove(directory: string): void {
  fs.rmSync(directory, { recursive: true, force: true });
  fsyncDirectory(path.dirname(directory));
}

function isChainSession(journal: string): boolean {
  if (!fs.existsSync(journal)) return true;
  const pending = readPending(journal);
  return pending.length === 0 || pending.some(({ kind }) => KINDS.has(kind));
}

function unsettled(name: string, problems: readonly Error[]): ChunkmountError {
  const [first] = problems;
  if (problems.length === 1 && first instanceof ChunkmountError) return first;
  return failed(`${name} could not be cleaned up: ${problems.map(({ message }) => message).join('; ')}`, {
    hint: `mend that, then run it again: chunkmount cleanup --vm=${name}`,
    cause: first,
  });
}

/** Ends a session that was cut off, or throws if it is none of ours. The lock must be held. */
async function endLeftOver({
  name,
  state,
  reporter,
  insisted,
  commitTimeoutMs,
}: ChainSessionRequest): Promise<void> {
  if (!isChainSession(state.journal(name))) {
    throw new ChunkmountError('locked', `${name} has a session already`, {
      hint: `end it first: chunkmount cleanup --vm=${name}`,
    });
  }
  const journal = new Journal(state.journal(name));
  try {
    if (journal.pending().length > 0) reporter.notice(`${name}: ending what was cut off before`);
    const problems = await settleChain({ journal, reporter, signal: insisted, commitTimeoutMs });
    if (problems.length > 0) throw unsettled(name, problems);
  } finally {
    journal.close();
  }
  remove(state.session(name));
}

/**
 * Ends a session of a chain that was cut off. Returns whether there was one: what mount, run and dump left is not touched. Throws
 * when something is left.
 */
export async function endChainSession(
  request: ChainSessionRequest & { readonly keepLock: boolean },
): Promise<boolean> {
  const { name, state } = request;
  const journal = state.journal(name);
  // An empty journal may be of any command; whoever asks us knows how to end that, too.
  if (!fs.existsSync(journal) || !readPending(journal).some(({ kind }) => KINDS.has(kind))) return false;
  const lock = await Lock.acquire(state.locks, name, { command: request.command, evenIfKept: true });
  try {
    if (!fs.existsSync(journal) || !isChainSession(journal)) return false;
    await endLeftOver(request);
    return true;
  } finally {
    lock.release({ keep: request.keepLock });
  }
}

/**
 * Does `work` with the VM locked, after ending what an earlier command left. When it throws, what it did to the host has been settled;
 * where that was not possible, the session stays for the next command or for cleanup, and a warning says so.
 */
export async function inChainSession<T>(
  request: ChainSessionRequest,
  work: (session: ChainSession) => Promise<T>,
): Promise<T> {
  const { name, state, reporter, insisted, commitTimeoutMs } = request;
  const lock = await Lock.acquire(state.locks, name, { command: request.command });
  try {
    if (fs.existsSync(state.session(name))) await endLeftOver(request);
    makeDirectory(state.session(name));
    const journal = new Journal(state.journal(name));
    try {
      const settle = () => settleChain({ journal, reporter, signal: insisted, commitTimeoutMs });
      journal.intend(SESSION_KIND, { name });
      const id = `${Date.now().toString(36)}-${randomBytes(3).toString('hex')}`;
      let result: T;
      try {
        result = await work({ id, journal });
      } catch (error) {
        const problems = await settle();
        for (const problem of problems) reporter.warn(messageOf(problem));
        if (problems.length > 0) reporter.warn(`${name} is not settled: run chunkmount cleanup --vm=${name}`);
        else remove(state.session(name));
        throw error;
      }
      const problems = await settle();
      if (problems.length > 0) throw unsettled(name, problems);
      remove(state.session(name));
      return result;
    } finally {
      journal.close();
    }
  } finally {
    lock.release();
  }
}
