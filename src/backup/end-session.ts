import * as fs from 'node:fs';
import * as path from 'node:path';
import { ChunkmountError, failed } from '../errors.js';
import type { Counters } from '../fuse/transport.js';
import { fsyncDirectory } from '../host/durable.js';
import { rawViewUndo } from '../image/raw-view-undo.js';
import { Virsh } from '../libvirt/virsh.js';
import type { Reporter } from '../report/reporter.js';
import { givenName, type NamedBy } from '../session/given-name.js';
import { Journal } from '../session/journal.js';
import { Lock } from '../session/lock.js';
import type { StateDirectory } from '../session/state-directory.js';
import { type UndoContext, type UndoHandler, type UndoHandlers, undoAll } from '../session/undo.js';
import { snapshotUndo } from '../snapshot/select.js';
import { noteDamage, readDamage } from './damage.js';
import { dumpUndo } from './dump-files.js';
import { keepingHandlers, keptSnapshots, releaseKept } from './kept-snapshots.js';
import { mountpointUndo } from './mountpoint.js';
import { readSessionRecord } from './session-record.js';
import { type DaemonStatus, readStatus } from './status.js';
import { SERVE, stopServingUndo } from './stop-serving.js';

const HANDLERS: UndoHandlers = {
  ...snapshotUndo,
  ...rawViewUndo,
  ...mountpointUndo,
  ...stopServingUndo,
  ...dumpUndo,
};

/** While somebody may still read the frozen disks, they stay frozen. */
const BARRIERS: ReadonlySet<string> = new Set([SERVE]);

export interface EndRequest {
  readonly name: string;
  readonly state: StateDirectory;
  /** The session that is meant, by its id: any, if undefined. */
  readonly session?: string | undefined;
  /** For the lock's record. */
  readonly command: string;
  readonly keepLock: boolean;
  /** Undo also what is kept between sessions. */
  readonly dropKept?: boolean | undefined;
  readonly reporter: Reporter;
  /** Ends waiting for long work; what is left stays for the next cleanup. */
  readonly signal?: AbortSignal | undefined;
  /** See UndoContext. */
  readonly commitTimeoutMs?: number | undefined;
}

/** How a session ended. `nothing`: there was none, or it was not the one that was meant. */
export type EndResult =
  | {
      readonly kind: 'ended';
      /** What was read of the tree, if it was served. */
      readonly counters: Counters | undefined;
    }
  | { readonly kind: 'nothing' };

/**
 * Undoes a session: unmounts, ends the daemon, gives the VM its disks back. Works after a crash at any point and when run twice.
 * Throws when something is left (a later cleanup goes on), and when all is undone but the tree was not whole:
 * then the backup made from it is not good.
 */
export async function endSession(request: EndRequest): Promise<EndResult> {
  const { name, state, command } = request;
  const lock = await Lock.acquire(state.locks, name, { command, evenIfKept: true });
  try {
    const result = await endLocked(request);
    if (request.dropKept !== true || !(await dropKept(request)) || result.kind === 'ended') return result;
    return { kind: 'ended', counters: undefined };
  } finally {
    lock.release({ keep: request.keepLock });
  }
}

async function endLocked(request: EndRequest): Promise<EndResult> {
  const { name, state, reporter, signal, commitTimeoutMs } = request;
  const directory = state.session(name);
  const record = readSessionRecord(directory);
  if (request.session !== undefined && record?.id !== request.session) return { kind: 'nothing' };
  if (record?.source === 'vm') new Virsh({ connect: record.connect, signal }).expectQuestions();
  if (!fs.existsSync(directory)) {
    const released = request.dropKept !== true && (await releaseLeftOver(request));
    return released ? { kind: 'ended', counters: undefined } : { kind: 'nothing' };
  }
  const journal = new Journal(state.journal(name));
  let status: DaemonStatus | undefined;
  try {
    const wasServed = journal.find(SERVE) !== undefined;
    const session = { name, state, journal, reporter, signal, commitTimeoutMs };
    let noted: Error | undefined;
    const unserved = async () => {
      noted = await noteDamage(session);
    };
    const inspect = () => {
      if (wasServed) status = readStatus(directory);
      if (status !== undefined) tellStatus(name, status, reporter);
      return readDamage(directory) ?? noted;
    };
    const problems = await undoSession(session, { inspect, unserved });
    if (problems.length > 0) throw unfinished(name, problems, record?.source);
  } finally {
    journal.close();
  }
  return { kind: 'ended', counters: status?.counters };
}

/** Undoes what the last session could not undo of what an earlier one had kept. Returns whether there was anything. */
async function releaseLeftOver(request: EndRequest): Promise<boolean> {
  const before = keptSnapshots(request).length;
  if (before === 0) return false;
  const problems = await releaseKept(request, HANDLERS, 'unneeded');
  if (problems.length > 0) throw unfinished(request.name, problems);
  return keptSnapshots(request).length < before;
}

/** Undoes what is kept between sessions. Returns whether there was anything. */
async function dropKept(request: EndRequest): Promise<boolean> {
  const { name } = request;
  if (keptSnapshots(request).length === 0) return false;
  const problems = await releaseKept(request, HANDLERS, 'all');
  if (problems.length > 0) throw unfinished(name, problems);
  return true;
}

/** What to throw when an undo left something: the only problem, or all of them in one sentence. */
export function unfinished(name: string, problems: readonly Error[], namedBy?: NamedBy): ChunkmountError {
  const [first] = problems;
  if (problems.length === 1 && first instanceof ChunkmountError) return first;
  return failed(
    `${name} could not be cleaned up: ${[...new Set(problems.map(({ message }) => message))].join('; ')}`,
    {
      hint: `mend that, then run it again: chunkmount cleanup ${givenName(name, namedBy)}`,
      cause: first,
    },
  );
}

/**
 * Undoes what the journal holds. When nothing is left the session's directory goes too. Returns what went wrong.
 * `inspect` is asked, once all is undone, whether the tree was whole; `unserved` is called when nobody can read it any more, and the
 * snapshots are still there.
 */
export async function undoSession(
  session: UndoContext & { readonly name: string; readonly state: StateDirectory },
  {
    inspect = () => undefined,
    unserved = async () => {},
  }: { inspect?: () => Error | undefined; unserved?: () => Promise<void> } = {},
): Promise<Error[]> {
  const { name, state } = session;
  const stopServing: UndoHandler = async (entry, context) => {
    await stopServingUndo[SERVE](entry, context);
    await unserved();
  };
  const handlers = keepingHandlers({ ...HANDLERS, [SERVE]: stopServing }, session);
  const problems = await undoAll(session, handlers, BARRIERS);
  if (problems.length > 0) return problems;
  const damage = inspect();
  const directory = state.session(name);
  fs.rmSync(directory, { recursive: true, force: true });
  fsyncDirectory(path.dirname(directory));
  // What cannot be undone of these keeps nobody from the next backup.
  const left = await releaseKept(session, HANDLERS, 'unneeded');
  return damage === undefined ? left : [damage, ...left];
}

/** What the daemon had to say: the mount command had returned by then. An index is checked where its rows are first needed. */
function tellStatus(name: string, { warnings = [], scan, counters }: DaemonStatus, reporter: Reporter): void {
  for (const warning of warnings) reporter.warn(`${name}: ${warning}`);
  if (scan.damagedIndexBlocks > 0)
    reporter.warn(`the index of ${name} was damaged: chunks that did not change may have counted as changed`);
  reporter.debug(
    `${name}: ${scan.bytesRead} bytes read of the disks; ${scan.kept} chunks kept unread, ${scan.audited} audited`,
  );
  const { chunksRead, reads, bytesRead } = counters;
  reporter.debug(
    `${name}: ${chunksRead} of ${scan.chunks} chunk files read; ${reads} reads, ${bytesRead} bytes`,
  );
}
