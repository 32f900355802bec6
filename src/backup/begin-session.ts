import * as fs from 'node:fs';
import { createHasher } from '../chunks/chunk-hash.js';
import { MANIFEST_NAME, SUMS_SUFFIX } from '../chunks/paths.js';
import { latestPossibleMtime, type SessionTimes } from '../content-index/stable-times.js';
import { openRecord, readTreeRecord, rootMtime } from '../content-index/tree-record.js';
import { failed, messageOf } from '../errors.js';
import type { WaitingDaemon } from '../fuse/start-daemon.js';
import type { TransportKind } from '../fuse/transport.js';
import { makeDirectory, removeUnfinished } from '../host/durable.js';
import { chooseTransport } from './choose-transport.js';
import { type DaemonConfig, indexFile } from './daemon-config.js';
import { freezeSource } from './freeze-source.js';
import { idleOptions } from './idle-options.js';
import { keptSnapshots } from './kept-snapshots.js';
import { keptWarnings } from './kept-space.js';
import { manifestTime } from './manifest-time.js';
import { checkMountpoint, makeMountpoint, mountpointFor, treeSource } from './mountpoint.js';
import { inNewSession, type NewSession, type SessionRequest } from './new-session.js';
import { prepareDisks } from './prepare-disks.js';
import { prepareToServe, serve } from './serve.js';
import { writeSessionRecord } from './session-record.js';
import type { FrozenSource } from './source.js';
import { writeTreeFiles } from './tree-files.js';

/** What a mounted session is to the command that began it. */
export interface BegunSession {
  readonly name: string;
  readonly id: string;
  readonly mountpoint: string;
  readonly snapshotTime: string;
  readonly consistency: string;
  readonly transport: string;
  readonly disks: readonly { readonly target: string; readonly size: number; readonly snapshot: string }[];
}

/**
 * From a source to a mounted tree. When it throws, everything that it did to the host has been undone; where that was not
 * possible either, the session stays for `cleanup`, and a warning says so.
 */
export function beginSession(request: SessionRequest): Promise<BegunSession> {
  return inNewSession(request, { work: (session) => build(request, session), stays: true });
}

async function build(request: SessionRequest, session: NewSession): Promise<BegunSession> {
  const { source, settings, reporter } = request;
  const { directory } = session;
  const mountpoint = mountpointFor(settings.backupDirectory, source.name);
  const transport = chooseTransport(settings.transport, reporter);
  checkMountpoint(mountpoint);
  for (const warning of keptWarnings({ name: source.name, state: settings.state })) reporter.warn(warning);
  const daemon = await prepareToServe(directory, { transport, politeness: settings.politeness });
  try {
    return await mountTree(request, session, { mountpoint, transport, daemon });
  } finally {
    daemon.drop();
  }
}

/** `daemon`: waits to be told what to serve. */
async function mountTree(
  { source, settings, reporter, signal }: SessionRequest,
  { id, journal, directory }: NewSession,
  { mountpoint, transport, daemon }: { mountpoint: string; transport: TransportKind; daemon: WaitingDaemon },
): Promise<BegunSession> {
  const frozen = await freezeSource({
    source,
    settings,
    sessionId: id,
    tracked: true,
    journal,
    reporter,
    signal,
  });
  const kept = keptSnapshots({ name: source.name, state: settings.state });
  for (const warning of idleOptions({ name: source.name, settings, frozen, made: journal.pending(), kept }))
    reporter.warn(warning);
  const disks = await prepareDisks({
    disks: frozen.disks,
    chunkSize: settings.chunkSize,
    sessionDirectory: directory,
    indexDirectory: settings.state.index(source.name),
    session: id,
    tracking: settings.tracking,
    kept,
    politeness: settings.politeness,
    journal,
    reporter,
    signal,
  });
  signal?.throwIfAborted();
  const sizes = disks.map(({ size }) => size);
  const tree = await describeTree({ source, settings, reporter }, frozen, sizes, directory);
  makeMountpoint(mountpoint, journal);
  const config: DaemonConfig = {
    name: source.name,
    sessionDirectory: directory,
    indexDirectory: settings.state.index(source.name),
    transport,
    mountpoint,
    source: treeSource(source.name, id),
    directIo: settings.directIo,
    allowOther: settings.allowOther,
    snapshotAutoextend: settings.snapshotAutoextend,
    bandwidth: settings.bandwidth,
    layout: settings.layout,
    skipZeros: settings.zeroChunks === 'skip',
    ...settings.owner,
    ...tree,
    disks,
  };
  await serve({ config, daemon, journal, reporter, signal });
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
    id,
    mountpoint,
    snapshotTime: frozen.time.toISOString(),
    consistency: frozen.consistency,
    transport,
    disks: summary,
  };
}

/** Writes the tree's own files and decides all times of this session. */
async function describeTree(
  { source, settings, reporter }: Pick<SessionRequest, 'source' | 'settings' | 'reporter'>,
  frozen: FrozenSource,
  sizes: readonly number[],
  directory: string,
): Promise<Pick<DaemonConfig, 'times' | 'rootMtime' | 'files' | 'zerosSkippedBefore'>> {
  const indexDirectory = settings.state.index(source.name);
  makeIndexDirectory(indexDirectory);
  const hasher = await createHasher();
  const record = readTreeRecord(indexDirectory, hasher);
  const snapshot = Math.floor(frozen.time.getTime() / 1000);
  const times: SessionTimes = { snapshot, newest: record.newest, unsettled: record.unsettled };
  // A tree that never was settled has no index yet.
  for (const { target } of record.newest === 0 ? [] : frozen.disks) {
    if (record.names.includes(target + SUMS_SUFFIX) && !fs.existsSync(indexFile(indexDirectory, target)))
      reporter.warn(`disk ${target}: its index is gone: all chunks count as changed`);
  }
  const { chunkSize, layout, zeroChunks } = settings;
  const { files, names } = writeTreeFiles({
    name: source.name,
    sessionDirectory: directory,
    source: frozen,
    sizes,
    chunkSize,
    layout,
    zeroChunks,
    mtime: latestPossibleMtime(times),
  });
  const root = rootMtime(record, names, snapshot);
  // Without a record nobody knows.
  const zerosSkippedBefore = record.names.length === 0 ? undefined : (record.zerosSkipped ?? []);
  const targets = frozen.disks.map(({ target }) => target);
  // Until the session is settled its directories have no times in the index, so those of the last one must not seem to be right.
  const unsure = zeroChunks === 'skip' || zerosSkippedBefore === undefined ? targets : [];
  const zerosSkipped = [...new Set([...(zerosSkippedBefore ?? []), ...unsure])];
  openRecord(indexDirectory, record, { times, names, rootMtime: root, zerosSkipped }, hasher);
  const { seconds, nanoseconds } = await manifestTime(times, reporter);
  return {
    times,
    zerosSkippedBefore,
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
    // The index of a large disk takes up hundreds of megabytes, and a daemon that is killed while it saves leaves as much.
    removeUnfinished(directory);
  } catch (error) {
    throw failed(`the index directory ${directory} cannot be written: ${messageOf(error)}`, {
      hint: 'give another --statedir, or make room',
      cause: error,
    });
  }
}
