import { randomBytes } from 'node:crypto';
import * as fs from 'node:fs';
import { checkName } from '../chunks/names.js';
import { MANIFEST_NAME } from '../chunks/paths.js';
import { latestPossibleMtime, type SessionTimes } from '../content-index/stable-times.js';
import { openRecord, readTreeRecord, rootMtime } from '../content-index/tree-record.js';
import { ChunkmountError, failed, messageOf } from '../errors.js';
import { makeDirectory } from '../host/durable.js';
import type { Reporter } from '../report/reporter.js';
import { Journal } from '../session/journal.js';
import { Lock } from '../session/lock.js';
import { chooseTransport } from './choose-transport.js';
import type { DaemonConfig } from './daemon-config.js';
import { undoSession } from './end-session.js';
import { freezeSource } from './freeze-source.js';
import { manifestTime } from './manifest-time.js';
import { checkMountpoint, makeMountpoint, mountpointFor } from './mountpoint.js';
import { prepareDisks } from './prepare-disks.js';
import { serve } from './serve.js';
import { readSessionRecord, writeSessionRecord } from './session-record.js';
import type { BackupSettings } from './settings.js';
import type { FrozenSource, Source } from './source.js';
import { writeTreeFiles } from './tree-files.js';

export interface BeginRequest {
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

/** What a mounted session is to the command that began it. */
export interface BegunSession {
  readonly name: string;
  readonly mountpoint: string;
  readonly snapshotTime: string;
  readonly consistency: string;
  readonly transport: string;
  readonly disks: readonly { readonly target: string; readonly size: number; readonly snapshot: string }[];
}

/**
 * From a source to a mounted tree. When it throws, everything that it did to the host has been undone; where that was not
 * possible either, the session stays for `cleanup`, and the error says so.
 */
export async function beginSession(request: BeginRequest): Promise<BegunSession> {
  const { source, settings, reporter } = request;
  const name = checkName(source.name);
  const lock = await Lock.acquire(settings.state.locks, name, { command: request.command });
  let keep = false;
  try {
    checkNoSession(name, settings);
    const mountpoint = mountpointFor(settings.backupDirectory, name);
    checkMountpoint(mountpoint);
    const directory = settings.state.session(name);
    const journal = makeJournal(settings, name);
    try {
      const begun = await build(request, { mountpoint, directory, journal });
      keep = settings.keepLock;
      return begun;
    } catch (error) {
      const signal = request.insisted;
      const problems = await undoSession({
        name,
        state: settings.state,
        journal,
        reporter,
        signal,
        commitTimeoutMs: settings.commitTimeoutMs,
      });
      for (const problem of problems) reporter.warn(messageOf(problem));
      if (problems.length > 0) reporter.warn(`${name} is not as it was: run chunkmount cleanup --vm=${name}`);
      throw error;
    } finally {
      journal.close();
    }
  } finally {
    lock.release({ keep });
  }
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

function checkNoSession(name: string, settings: BackupSettings): void {
  const sessions = settings.state.sessions();
  if (sessions.includes(name)) {
    const record = readSessionRecord(settings.state.session(name));
    const where =
      record === undefined
        ? 'was cut off while it began'
        : `is mounted at ${record.mountpoint} since ${record.begun}`;
    throw new ChunkmountError('locked', `${name} has a session already: it ${where}`, {
      hint: `end it first: chunkmount cleanup --vm=${name}`,
    });
  }
  if (settings.maxBackups > 0 && sessions.length >= settings.maxBackups) {
    throw new ChunkmountError(
      'locked',
      `${sessions.length} backups are running already: ${sessions.join(', ')}`,
      {
        hint: 'wait for one to end (chunkmount list), or raise --max-backups',
      },
    );
  }
}

interface Place {
  readonly mountpoint: string;
  readonly directory: string;
  readonly journal: Journal;
}

async function build(request: BeginRequest, place: Place): Promise<BegunSession> {
  const { source, settings, reporter, signal } = request;
  const { journal, directory, mountpoint } = place;
  const transport = chooseTransport(settings.transport, reporter);
  const id = `${Date.now().toString(36)}-${randomBytes(3).toString('hex')}`;
  const frozen = await freezeSource({ source, settings, sessionId: id, journal, reporter, signal });
  const disks = await prepareDisks({
    disks: frozen.disks,
    chunkSize: settings.chunkSize,
    sessionDirectory: directory,
    journal,
    reporter,
    signal,
  });
  signal?.throwIfAborted();
  const sizes = disks.map(({ size }) => size);
  const tree = await describeTree(request, frozen, sizes, directory);
  makeMountpoint(mountpoint, journal);
  const config: DaemonConfig = {
    name: source.name,
    sessionDirectory: directory,
    indexDirectory: settings.state.index(source.name),
    transport,
    mountpoint,
    source: `chunkmount:${source.name}:${id}`,
    directIo: settings.directIo,
    allowOther: settings.allowOther,
    ...settings.owner,
    ...tree,
    disks,
  };
  await serve({ config, journal, reporter, signal });
  signal?.throwIfAborted();
  const summary = frozen.disks.map(({ target, snapshot }, position) => ({
    target,
    size: sizes[position]!,
    snapshot,
  }));
  writeSessionRecord(directory, {
    name: source.name,
    id,
    source: source.kind,
    ...(settings.connect === undefined ? {} : { connect: settings.connect }),
    mountpoint,
    begun: new Date().toISOString(),
    transport,
    disks: summary,
  });
  return {
    name: source.name,
    mountpoint,
    snapshotTime: frozen.time.toISOString(),
    consistency: frozen.consistency,
    transport,
    disks: summary,
  };
}

/** Writes the tree's own files and decides all times of this session. */
async function describeTree(
  { source, settings, reporter }: BeginRequest,
  frozen: FrozenSource,
  sizes: readonly number[],
  directory: string,
): Promise<Pick<DaemonConfig, 'times' | 'rootMtime' | 'files'>> {
  const indexDirectory = settings.state.index(source.name);
  makeIndexDirectory(indexDirectory);
  const record = readTreeRecord(indexDirectory);
  const snapshot = Math.floor(frozen.time.getTime() / 1000);
  const times: SessionTimes = { snapshot, newest: record.newest, unsettled: record.unsettled };
  const { files, names } = writeTreeFiles({
    name: source.name,
    sessionDirectory: directory,
    source: frozen,
    sizes,
    chunkSize: settings.chunkSize,
    mtime: latestPossibleMtime(times),
  });
  const root = rootMtime(record, names, snapshot);
  openRecord(indexDirectory, record, { times, names, rootMtime: root });
  const { seconds, nanoseconds } = await manifestTime(times, reporter);
  return {
    times,
    rootMtime: root,
    files: files.map((file) =>
      file.name === MANIFEST_NAME ? { ...file, mtime: seconds, mtimeNs: nanoseconds } : file,
    ),
  };
}

function makeIndexDirectory(directory: string): void {
  try {
    makeDirectory(directory);
    fs.accessSync(directory, fs.constants.W_OK);
  } catch (error) {
    throw failed(`the index directory ${directory} cannot be written: ${messageOf(error)}`, {
      hint: 'give another --statedir, or make room',
      cause: error,
    });
  }
}
