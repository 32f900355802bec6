import { randomBytes } from 'node:crypto';
import * as fs from 'node:fs';
import { checkName } from '../chunks/names.js';
import { ChunkmountError, messageOf } from '../errors.js';
import { makeDirectory } from '../host/durable.js';
import type { Reporter } from '../report/reporter.js';
import { givenName } from '../session/given-name.js';
import { Journal } from '../session/journal.js';
import { exclusively, Lock } from '../session/lock.js';
import { undoSession, unfinished } from './end-session.js';
import { readSessionRecord } from './session-record.js';
import type { BackupSettings } from './settings.js';
import type { Source } from './source.js';

/** What every way of backing up needs to begin. */
export interface SessionRequest {
  readonly source: Source;
  readonly settings: BackupSettings;
  /** For the lock's record. */
  readonly command: string;
  readonly reporter: Reporter;
  /** Stop, and undo what has been begun. */
  readonly signal?: AbortSignal | undefined;
  /** Stop undoing, too; what is left stays for `cleanup`. */
  readonly insisted?: AbortSignal | undefined;
}

/** A session that has begun and has done nothing yet. */
export interface NewSession {
  /** Unique among all sessions of this host. */
  readonly id: string;
  /** Exists as long as there is anything to undo. */
  readonly directory: string;
  readonly journal: Journal;
}

export interface SessionWork<T> {
  readonly work: (session: NewSession) => Promise<T>;
  /** Whether the session goes on after `work`; else all is undone then, too. */
  readonly stays: boolean;
}

/**
 * Does `work` in a new session of a source, which is locked meanwhile. When it throws, everything that it did to the host has been
 * undone; where that was not possible either, the session stays for `cleanup`, and a warning says so.
 */
export async function inNewSession<T>(request: SessionRequest, work: SessionWork<T>): Promise<T> {
  const { settings } = request;
  const name = checkName(request.source.name);
  const lock = await Lock.acquire(settings.state.locks, name, {
    command: request.command,
    namedBy: request.source.kind,
  });
  let keep = false;
  try {
    const journal = await begin(request.source, settings);
    try {
      const result = await doOrUndo(request, newSession(settings, name, journal), work);
      keep = settings.keepLock;
      return result;
    } finally {
      journal.close();
    }
  } finally {
    lock.release({ keep });
  }
}

async function doOrUndo<T>(
  { source: { name, kind }, settings, reporter, insisted }: SessionRequest,
  session: NewSession,
  { work, stays }: SessionWork<T>,
): Promise<T> {
  const { state, commitTimeoutMs } = settings;
  const { journal } = session;
  const undo = () => undoSession({ name, state, journal, reporter, signal: insisted, commitTimeoutMs });
  let result: T;
  try {
    result = await work(session);
  } catch (error) {
    const problems = await undo();
    for (const problem of problems) reporter.warn(messageOf(problem));
    if (problems.length > 0)
      reporter.warn(`${name} is not as it was: run chunkmount cleanup ${givenName(name, kind)}`);
    throw error;
  }
  const problems = stays ? [] : await undo();
  if (problems.length > 0) throw unfinished(name, problems, kind);
  return result;
}

function newSession({ state }: BackupSettings, name: string, journal: Journal): NewSession {
  const id = `${Date.now().toString(36)}-${randomBytes(3).toString('hex')}`;
  return { id, directory: state.session(name), journal };
}

/** No name of a VM or tree begins with a dot. */
const COUNT_LOCK = '.max-backups';

/** Begins the session, unless there is one, or there are too many. Of those who begin at once, each has to see the others. */
async function begin(source: Source, settings: BackupSettings): Promise<Journal> {
  const checked = () => {
    checkNoSession(source, settings);
    return makeJournal(settings, source.name);
  };
  return settings.maxBackups > 0 ? exclusively(settings.state.locks, COUNT_LOCK, checked) : checked();
}

/** The session exists from now on. A directory without a journal would be one that is never ended. */
function makeJournal({ state }: BackupSettings, name: string): Journal {
  makeDirectory(state.session(name));
  try {
    return new Journal(state.journal(name));
  } catch (error) {
    fs.rmSync(state.session(name), { recursive: true, force: true });
    throw error;
  }
}

function checkNoSession({ name, kind }: Source, settings: BackupSettings): void {
  const sessions = settings.state.sessions();
  if (sessions.includes(name)) {
    const record = readSessionRecord(settings.state.session(name));
    const where =
      record === undefined
        ? 'was cut off while it began'
        : `is mounted at ${record.mountpoint} since ${record.begun}`;
    throw new ChunkmountError('locked', `${name} has a session already: it ${where}`, {
      hint: `end it first: chunkmount cleanup ${givenName(name, kind)}`,
    });
  }
  if (settings.maxBackups > 0 && sessions.length >= settings.maxBackups) {
    throw new ChunkmountError(
      'locked',
      `${sessions.length === 1 ? '1 backup is' : `${sessions.length} backups are`} running already: ${sessions.join(', ')}`,
      {
        hint: 'wait for one to end (chunkmount list), or raise --max-backups',
      },
    );
  }
}
