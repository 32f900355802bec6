import * as fs from 'node:fs';
import * as path from 'node:path';
import { failed } from '../../errors.js';
import { mountAt } from '../../host/mountinfo.js';
import type { Journal } from '../../session/journal.js';
import { checkSnapshots } from '../../snapshot/inspect-snapshots.js';
import { watchSnapshots } from '../../snapshot/watch-snapshots.js';
import { DumpFiles } from '../dump-files.js';
import { freezeSource } from '../freeze-source.js';
import { mountpointFor } from '../mountpoint.js';
import { inNewSession, type NewSession, type SessionRequest } from '../new-session.js';
import { type LocatedDisk, locateDisk } from '../prepare-disks.js';
import type { FrozenSource } from '../source.js';
import type { Compressor } from './compressor.js';
import { type DumpFormat, dumpImage } from './image.js';
import { type DumpPlan, planDump, succeed } from './plan.js';
import { DumpSpace } from './space.js';

export interface DumpRequest extends SessionRequest {
  readonly format: DumpFormat;
  /** Undefined: not compressed. */
  readonly compressor: Compressor | undefined;
  /** The snapshot's time goes into the names, and earlier dumps stay. */
  readonly dated: boolean;
}

export interface DumpedFile {
  readonly path: string;
  /** Bytes. */
  readonly size: number;
  /** Hex digits. */
  readonly sha256: string;
  /** Of an image: its target, and the size of the disk in bytes. */
  readonly disk?: string;
  readonly diskSize?: number;
}

export interface DumpResult {
  readonly name: string;
  readonly directory: string;
  /** ISO 8601. */
  readonly snapshotTime: string;
  readonly consistency: string;
  readonly files: readonly DumpedFile[];
  /** The file of their sums. */
  readonly sums: string;
}

/** Where the dumps of `name` are: apart from the mountpoint of its tree, which must be empty. */
export function dumpDirectoryName(name: string): string {
  return `${name}.dump`;
}

/**
 * Writes images of a source's disks at one point in time, and undoes the snapshot. When it throws, what it did to the host has been
 * undone as far as possible, and of the dump nothing is left; or the dump is complete, and the undoing failed.
 */
export function dumpSource(request: DumpRequest): Promise<DumpResult> {
  return inNewSession(request, { work: (session) => dump(request, session), stays: false });
}

async function dump(request: DumpRequest, session: NewSession): Promise<DumpResult> {
  const { source, settings, reporter, signal } = request;
  const directory = dumpDirectory(settings.backupDirectory, source.name);
  const { id, journal, directory: sessionDirectory } = session;
  const frozen = await freezeSource({
    source,
    settings,
    sessionId: id,
    tracked: false,
    journal,
    reporter,
    signal,
  });
  const disks: LocatedDisk[] = [];
  for (const disk of frozen.disks)
    disks.push(await locateDisk(disk, { ...request, sessionDirectory, journal }));
  signal?.throwIfAborted();
  const space = new DumpSpace(directory, growing(request, frozen));
  checkRoom(request, disks, space);
  const { owner } = settings;
  const plan = planDump({ ...request, name: source.name, source: frozen });
  const files = new DumpFiles({
    directory,
    files: namesOf(plan),
    scratch: scratchOf(plan, request),
    owner,
    journal,
  });
  const written = await space.guard(signal, (guarded) =>
    watched(request, journal, () =>
      writeImages({ ...request, signal: guarded }, { files, plan, disks, sessionDirectory }),
    ),
  );
  written.push(...writeDescription(files, plan, frozen));
  if (plan.state !== undefined && frozen.memory !== undefined) {
    const file = path.join(files.directory, plan.state);
    written.push({ path: file, ...(await files.copy(plan.state, frozen.memory)) });
  }
  return finish(request, { files, plan, frozen, written });
}

/** Warns while a snapshot fills up, and throws when one was lost before `read` came to its end. */
async function watched<T>(
  { settings, reporter }: DumpRequest,
  journal: Journal,
  read: () => Promise<T>,
): Promise<T> {
  const end = new AbortController();
  const onLost = (message: string) => reporter.warn(message);
  const entries = journal.pending();
  const autoExtend = settings.snapshotAutoextend;
  const watching = watchSnapshots({ entries, reporter, autoExtend, onLost, signal: end.signal });
  let result: T;
  try {
    result = await read();
  } finally {
    end.abort();
    await watching;
  }
  await checkSnapshots(journal);
  return result;
}

interface Images {
  readonly files: DumpFiles;
  readonly plan: DumpPlan;
  readonly disks: readonly LocatedDisk[];
  readonly sessionDirectory: string;
}

/** One after the other: each keeps a processor and a disk busy. */
async function writeImages(
  request: DumpRequest,
  { files, plan, disks, sessionDirectory }: Images,
): Promise<DumpedFile[]> {
  const { owner } = request.settings;
  const written: DumpedFile[] = [];
  for (const [position, { target, file, scratch }] of plan.disks.entries()) {
    const disk = disks[position]!;
    const image = { file: files.partial(file), scratch: files.partial(scratch) };
    const result = await dumpImage({ ...request, ...image, target, disk, owner, sessionDirectory });
    written.push({
      path: path.join(files.directory, file),
      disk: target,
      diskSize: disk.virtualSize,
      ...result,
    });
  }
  return written;
}

/** Absolute. Throws when something else is there. */
function dumpDirectory(backupDirectory: string, name: string): string {
  const directory = mountpointFor(backupDirectory, dumpDirectoryName(name));
  const stat = fs.statSync(directory, { throwIfNoEntry: false });
  if (stat !== undefined && !stat.isDirectory()) {
    throw failed(`${directory} is no directory`, { hint: 'move it away, or give another --backupdir' });
  }
  if (mountAt(directory)?.type.startsWith('fuse') === true) {
    throw failed(`${directory} is a mountpoint`, { hint: 'give another --backupdir' });
  }
  return directory;
}

/** Directories where overlays are that grow while a VM writes. */
function growing({ settings }: DumpRequest, { disks }: FrozenSource): string[] {
  const overlays = disks.filter(({ snapshot }) => snapshot === 'overlay');
  return overlays.map(({ image }) => settings.overlayDirectory ?? path.dirname(image.path));
}

/** What compression leaves of a disk nobody knows: then only a warning. */
function checkRoom(request: DumpRequest, disks: readonly LocatedDisk[], space: DumpSpace): void {
  const { source, format, compressor, reporter } = request;
  const data = disks.map(({ extents }) => extents.dataBytes);
  const all = data.reduce((sum, bytes) => sum + bytes, 0);
  if (compressor === undefined) {
    space.check(all, `the dump of ${source.name}`);
    return;
  }
  space.check(format === 'qcow2' ? Math.max(0, ...data) : 0, `the dump of ${source.name}`);
  const doubt = space.doubt(all);
  if (doubt !== undefined) reporter.warn(doubt);
}

function namesOf({ disks, xml, nvram, state, sums }: DumpPlan): string[] {
  const others = [xml, nvram, state, sums].filter((name) => name !== undefined);
  return [...disks.map(({ file }) => file), ...others];
}

/** Only a qcow2 image that is compressed is made uncompressed first. */
function scratchOf({ disks }: DumpPlan, { format, compressor }: DumpRequest): string[] {
  return format === 'qcow2' && compressor !== undefined ? disks.map(({ scratch }) => scratch) : [];
}

/** The domain's XML and NVRAM. */
function writeDescription(files: DumpFiles, plan: DumpPlan, { xml, nvram }: FrozenSource): DumpedFile[] {
  const contents = [
    { name: plan.xml, content: xml === undefined ? undefined : Buffer.from(xml) },
    { name: plan.nvram, content: nvram === undefined ? undefined : fs.readFileSync(nvram) },
  ];
  return contents.flatMap(({ name, content }) => {
    if (name === undefined || content === undefined) return [];
    const sha256 = files.write(name, content);
    return [{ path: path.join(files.directory, name), size: content.byteLength, sha256 }];
  });
}

interface Written {
  readonly files: DumpFiles;
  readonly plan: DumpPlan;
  readonly frozen: FrozenSource;
  readonly written: readonly DumpedFile[];
}

/** Writes the sums, and gives all files their names. */
function finish(request: DumpRequest, { files, plan, frozen, written }: Written): DumpResult {
  const { name } = request.source;
  const { directory } = files;
  const { kept, obsolete } = succeed(directory, name, plan, namesOf(plan));
  const lines = written.map((file) => `${file.sha256}  ${path.basename(file.path)}`);
  files.write(plan.sums, Buffer.from([...lines, ...kept].map((line) => `${line}\n`).join('')));
  request.signal?.throwIfAborted();
  files.publish(obsolete);
  return {
    name,
    directory,
    snapshotTime: frozen.time.toISOString(),
    consistency: frozen.consistency,
    files: written,
    sums: path.join(directory, plan.sums),
  };
}
