import * as fs from 'node:fs';
import * as path from 'node:path';
import { mountAnswers } from '../host/mount-answers.js';
import { mountAt } from '../host/mountinfo.js';
import { isAlive } from '../host/process-identity.js';
import { type JournalEntry, readPending } from '../session/journal.js';
import { type LockRecord, listLocks } from '../session/lock.js';
import type { StateDirectory } from '../session/state-directory.js';
import { keptSnapshots, targetsOf } from './kept-snapshots.js';
import { treeSource } from './mountpoint.js';
import { readSessionRecord, type SessionRecord } from './session-record.js';
import { type DaemonStatus, readStatus } from './status.js';
import { daemonOf, SERVE } from './stop-serving.js';

/**
 * mounted: all is well; working: a command begins, dumps or ends it right now; dead: the daemon or its mount is gone; failed:
 * chunks could not be read, or a snapshot is lost; incomplete: beginning or cleaning up was cut off, and `cleanup` has to go on; locked: there is no
 * session, but a lock.
 */
export type SessionState = 'mounted' | 'working' | 'dead' | 'failed' | 'incomplete' | 'locked';

/** A file that grows with what the guest writes while the session lasts. */
export interface GrowingSpace {
  readonly path: string;
  /** Bytes that it takes up now. */
  readonly used: number;
  /** Bytes left where it lies. */
  readonly free: number;
}

export interface SessionSummary {
  readonly name: string;
  readonly state: SessionState;
  readonly mountpoint: string | null;
  /** ISO 8601. */
  readonly since: string | null;
  /** Seconds. */
  readonly age: number | null;
  readonly disks: SessionRecord['disks'];
  readonly space: readonly GrowingSpace[];
  readonly daemon: DaemonStatus | null;
  /** What is still to be undone, by journal kind. */
  readonly pending: readonly string[];
  /** Kept by --keep-lock. */
  readonly kept: boolean;
}

/** A snapshot that was left for the next session: see kept-snapshots.ts. */
export interface KeptSummary {
  readonly name: string;
  readonly target: string;
  /** Journal kind: `overlay`, `lvm-snapshot`, … */
  readonly kind: string;
  readonly space: readonly GrowingSpace[];
}

/** What is kept between sessions, by name. */
export function listKept(state: StateDirectory): KeptSummary[] {
  return state
    .kept()
    .flatMap((name) =>
      entriesOf(() => keptSnapshots({ name, state })).flatMap((entry) =>
        targetsOf(entry).map((target) => ({ name, target, kind: entry.kind, space: growingSpace(entry) })),
      ),
    );
}

/** All sessions and kept locks, sorted by name. Never waits for a mount that does not answer longer than a second. */
export async function listSessions(state: StateDirectory): Promise<SessionSummary[]> {
  const locks = listLocks(state.locks);
  const kept = new Set([...locks].filter(([, record]) => record.kept).map(([name]) => name));
  const names = [...new Set([...state.sessions(), ...kept])].sort();
  // Who kept a lock may live on as `run` does, and who has it briefly only looks.
  const works = ({ kept, brief, owner }: LockRecord) => !kept && brief !== true && isAlive(owner);
  const busy = new Set([...locks].filter(([, record]) => works(record)).map(([name]) => name));
  return Promise.all(
    names.map((name) => summarize(name, state, { kept: kept.has(name), busy: busy.has(name) })),
  );
}

async function summarize(
  name: string,
  state: StateDirectory,
  { kept, busy }: { readonly kept: boolean; readonly busy: boolean },
): Promise<SessionSummary> {
  const directory = state.session(name);
  const entries = pendingEntries(state, name);
  const record = readSessionRecord(directory);
  const status = readStatus(directory);
  const since = record?.begun ?? null;
  return {
    name,
    state: await stateOf({ directory, record, status, entries, busy }),
    mountpoint: record?.mountpoint ?? null,
    since,
    age: since === null ? null : Math.max(0, Math.round((Date.now() - Date.parse(since)) / 1000)),
    disks: record?.disks ?? [],
    space: entries.flatMap(growingSpace),
    daemon: status ?? null,
    pending: entries.map(({ kind }) => kind),
    kept,
  };
}

/** What there is of a session. */
interface Found {
  readonly directory: string;
  readonly record: SessionRecord | undefined;
  readonly status: DaemonStatus | undefined;
  /** What is still to be undone. */
  readonly entries: readonly JournalEntry[];
  /** A command works on it. */
  readonly busy: boolean;
}

async function stateOf({ directory, record, status, entries, busy }: Found): Promise<SessionState> {
  if (!fs.existsSync(directory)) return 'locked';
  if (record === undefined) return busy ? 'working' : 'incomplete';
  const { name, mountpoint, id } = record;
  if (mountAt(mountpoint)?.source !== treeSource(name, id) || !(await isServed(mountpoint, entries))) {
    if (busy) return 'working';
    return entries.some(({ kind }) => kind === SERVE) ? 'dead' : 'incomplete';
  }
  const bad =
    status !== undefined &&
    (status.scan.unreadable > 0 || status.counters.ioErrors > 0 || (status.lost ?? []).length > 0);
  return bad ? 'failed' : 'mounted';
}

/**
 * Whether a mount that is there has a daemon: one that is busy, or was stopped, may take long to answer. The mount is asked only if the
 * journal does not say which process it is.
 */
async function isServed(mountpoint: string, entries: readonly JournalEntry[]): Promise<boolean> {
  const daemon = daemonOf(entries);
  if (daemon !== undefined) return isAlive(daemon);
  return (await mountAnswers(mountpoint, 1000)) !== false;
}

function pendingEntries(state: StateDirectory, name: string): JournalEntry[] {
  return fs.existsSync(state.journal(name)) ? entriesOf(() => readPending(state.journal(name))) : [];
}

/** None if the journal is damaged, or being written. */
function entriesOf(read: () => JournalEntry[]): JournalEntry[] {
  try {
    return read();
  } catch {
    return [];
  }
}

function growingSpace({ data }: JournalEntry): GrowingSpace[] {
  const file = data.overlay ?? data.scratch;
  if (typeof file !== 'string') return [];
  try {
    const { bavail, bsize } = fs.statfsSync(path.dirname(file));
    return [{ path: file, used: fs.statSync(file).blocks * 512, free: bavail * bsize }];
  } catch {
    return [];
  }
}
