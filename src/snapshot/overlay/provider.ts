import { ChunkmountError, failed, messageOf } from '../../errors.js';
import { allEnded } from '../../host/all-ended.js';
import { NotStartedError } from '../../host/command-error.js';
import type { ProcessIdentity } from '../../host/process-identity.js';
import { diskSource } from '../../libvirt/disk-source.js';
import type { Disk } from '../../libvirt/domain.js';
import { loadDescription } from '../../libvirt/load-domain.js';
import { findQemu } from '../../libvirt/qemu-process.js';
import { isAnswer, type SnapshotFlags } from '../../libvirt/virsh.js';
import type { JournalData, JournalEntry } from '../../session/journal.js';
import { diskRefusal } from '../disk-refusal.js';
import { holdImages, holdUndo } from '../hold.js';
import { identityOf } from '../image-identity.js';
import { MEMORY_TIMEOUT_MS, memoryUndo, prepareMemoryFile } from '../memory.js';
import { imageOf, imagesBelow } from '../none.js';
import type { Consistency, Snapshot, SnapshotProvider, SnapshotRequest } from '../provider.js';
import { FREEZE_TIMEOUT_SECONDS, quiesceRefusal, thawUndo, withFreeze } from '../quiesce.js';
import { snapshotXml } from '../snapshot-xml.js';
import { OVERLAY_KIND } from '../watched-kinds.js';
import { markBase } from './base-check.js';
import { checkSpace, makeOverlayFile, overlayPath } from './files.js';
import type { OverlayRecord } from './record.js';
import { undoOverlay } from './undo.js';
import { isStoppedByWriteError } from './write-error.js';

/** Formats that QEMU both reads as a backing file and commits into without loss. */
const BASE_FORMATS: ReadonlySet<string> = new Set(['raw', 'qcow2']);

/** A quiesced snapshot waits for the agent twice (freeze and thaw), and for the disks between. */
const QUIESCED_TIMEOUT_MS = (2 * FREEZE_TIMEOUT_SECONDS + 90) * 1000;

interface Preparation {
  readonly disk: Disk;
  readonly entry: JournalEntry;
  readonly overlay: string;
}

type RefusalRequest = Parameters<SnapshotProvider['refusal']>[0];

/** Why a job that is under way stands against freezing the disk of a running VM. */
export async function jobRefusal({ virsh, domain }: RefusalRequest, disk: Disk): Promise<string | undefined> {
  // Asked first: while a backup job runs, other questions block for half a minute.
  if (await virsh.hasDomainJob(domain.uuid))
    return `a job (backup, migration, save or dump) works on ${domain.name}`;
  const job = disk.mirror?.job ?? (await virsh.blockJob(domain.uuid, disk.target))?.type;
  return job === undefined ? undefined : `a block job (${job}) works on it`;
}

async function refusal(request: RefusalRequest, disk: Disk): Promise<string | undefined> {
  const { domain } = request;
  const because = (reason: string | undefined) =>
    reason === undefined ? undefined : `disk ${disk.target}: ${reason}`;
  const general = diskRefusal(disk);
  if (general !== undefined) return because(general);
  if (domain.state !== 'running' && domain.state !== 'paused') {
    return because(`${domain.name} is ${domain.state}, and only a running VM can be put onto an overlay`);
  }
  if (disk.readonly) return because('it is read-only, and needs no overlay');
  if (!BASE_FORMATS.has(imageOf(disk).format))
    return because(`an overlay on the format ${disk.format} is not supported`);
  return because(await jobRefusal(request, disk));
}

/** What the VM was before the snapshot. */
interface Before {
  /** Its definition, unless it is transient. */
  readonly inactive: string | undefined;
  readonly qemu: ProcessIdentity;
  readonly stoppedBefore: boolean;
}

function describe(
  request: SnapshotRequest,
  disk: Disk,
  overlay: string,
  { inactive, qemu, stoppedBefore }: Before,
) {
  const { virsh, domain } = request;
  const { path, format } = imageOf(disk);
  const identity = identityOf(path);
  if (identity === undefined) throw failed(`${path}, the image of disk ${disk.target}, is not on this host`);
  const record: OverlayRecord = {
    session: request.sessionId,
    connect: virsh.options.connect,
    domain: { uuid: domain.uuid, name: domain.name },
    target: disk.target,
    overlay,
    base: { path, format, identity },
    definition: inactive === undefined ? undefined : diskSource(inactive, disk.target),
    qemu,
    stoppedBefore,
  };
  return record;
}

/** Records the overlays and makes their files, still empty. */
async function prepare(
  request: SnapshotRequest,
  attempt: number,
  qemu: ProcessIdentity,
): Promise<Preparation[]> {
  const { virsh, domain, disks, sessionId, options, journal } = request;
  const inactive = domain.persistent ? await virsh.dumpXml(domain.uuid, { inactive: true }) : undefined;
  const stoppedBefore = domain.state === 'paused' && (await isStoppedByWriteError(virsh, domain.uuid));
  const before = { inactive, qemu, stoppedBefore };
  const overlays = disks.map((disk) => overlayPath(disk, sessionId, attempt, options.overlayDirectory));
  for (const overlay of overlays) checkSpace(overlay);
  return disks.map((disk, index) => {
    const overlay = overlays[index]!;
    const entry = journal.intend(OVERLAY_KIND, describe(request, disk, overlay, before));
    try {
      return { disk, overlay, entry: journal.done(entry, { file: makeOverlayFile(overlay) }) };
    } catch (error) {
      // Nothing was made; what has that name now is somebody else's.
      if (error instanceof ChunkmountError) journal.undone(entry);
      throw error;
    }
  });
}

interface TakeOptions {
  readonly quiesce: boolean;
  readonly qemu: ProcessIdentity;
}

/** Asks libvirt for the snapshot. Records that it answered, for whoever has to find out what became of it. */
async function take(
  request: SnapshotRequest,
  prepared: readonly Preparation[],
  how: TakeOptions,
): Promise<void> {
  const { virsh, domain, sessionId, journal, options } = request;
  const { memoryFile } = options;
  const overlays = new Map(prepared.map(({ disk, overlay }) => [disk.target, overlay]));
  const targets = domain.disks.map(({ target }) => target);
  const xml = snapshotXml({ name: `cm-${sessionId}`, targets, overlays, memoryFile });
  // Recorded after the overlays, so that a saving which still goes on is ended before they are looked for.
  const memory =
    memoryFile === undefined
      ? undefined
      : prepareMemoryFile({ virsh, domain, qemu: how.qemu, journal, file: memoryFile });
  const recordAll = (data: JournalData) => {
    for (const { entry } of prepared) journal.done(entry, data);
  };
  recordAll({ askedAt: Date.now() });
  try {
    await virsh.snapshotCreate(domain.uuid, xml, snapshotFlags(memory !== undefined, how.quiesce));
  } catch (error) {
    if (isAnswer(error) || error instanceof NotStartedError) recordAll({ answered: true });
    if (error instanceof NotStartedError) throw error;
    throw failed(`no snapshot of ${domain.name} could be made: ${messageOf(error)}`, {
      hint: 'is there space for overlays, and may QEMU write there (AppArmor, SELinux: see chunkmount doctor)? --overlay-dir=DIR names another place',
      cause: error,
    });
  }
  recordAll({ answered: true });
  if (memory !== undefined) journal.done(memory, { saved: true });
}

function snapshotFlags(memory: boolean, quiesce: boolean): SnapshotFlags {
  if (memory) return { memory, timeoutMs: MEMORY_TIMEOUT_MS };
  return quiesce ? { quiesce, timeoutMs: QUIESCED_TIMEOUT_MS } : {};
}

/** Takes the snapshot with the guest's file systems frozen. Returns why not, if it may be taken without. */
async function takeQuiesced(
  request: SnapshotRequest,
  qemu: ProcessIdentity,
): Promise<Preparation[] | string> {
  const { virsh, domain, journal, reporter } = request;
  const refused = await quiesceRefusal(virsh, domain.uuid);
  if (refused !== undefined) return refused;
  const prepared = await prepare(request, 0, qemu);
  try {
    await withFreeze({ virsh, domain, qemu, journal, reporter }, () =>
      take(request, prepared, { quiesce: true, qemu }),
    );
    return prepared;
  } catch (error) {
    request.signal?.throwIfAborted();
    if (await isMade(request, prepared)) return prepared;
    if (!isAnswer(error)) throw error;
    return messageOf(error);
  }
}

async function isMade(
  { virsh, domain }: SnapshotRequest,
  prepared: readonly Preparation[],
): Promise<boolean> {
  const { disks } = await loadDescription(virsh, domain.uuid);
  return prepared.every(({ disk, overlay }) => {
    const now = disks.find(({ target }) => target === disk.target);
    return now?.path === overlay && now.below[0] === disk.path;
  });
}

/** Throws unless the snapshot is of the images that it should be of; else records that, and how their bases were left. */
async function noteMade(request: SnapshotRequest, prepared: readonly Preparation[]): Promise<void> {
  const { domain, journal } = request;
  if (!(await isMade(request, prepared))) {
    throw failed(`libvirt made a snapshot of ${domain.name}, but not of the images that it should`, {
      hint: `does somebody else make snapshots of it? see virsh domblklist ${domain.name}`,
    });
  }
  for (const { disk, entry } of prepared)
    journal.done(entry, { made: true, ...(await markBase(disk.path!)) });
}

/** Somebody who defines or reverts the VM onto a base would write what is being read. */
async function holdBases({ journal, signal }: SnapshotRequest, disks: readonly Disk[]): Promise<void> {
  await holdImages({ images: imagesBelow(disks), journal, signal });
}

interface Taken {
  readonly prepared: readonly Preparation[];
  readonly consistency: Consistency;
}

async function takeAsAsked(request: SnapshotRequest, qemu: ProcessIdentity): Promise<Taken> {
  const { domain, options, reporter } = request;
  let attempt = 0;
  if (options.quiesce !== 'no') {
    const result = await takeQuiesced(request, qemu);
    if (typeof result !== 'string') return { prepared: result, consistency: 'filesystem' };
    const sentence = `the file systems of ${domain.name} cannot be frozen: ${result}`;
    if (options.quiesce === 'require') {
      throw failed(sentence, {
        hint: 'is qemu-guest-agent running in the guest? --quiesce=try goes on without',
      });
    }
    reporter.warn(`${sentence}; its snapshot is as after a power failure`);
    attempt = 1;
  }
  const prepared = await prepare(request, attempt, qemu);
  await take(request, prepared, { quiesce: false, qemu });
  return { prepared, consistency: options.memoryFile === undefined ? 'crash' : 'memory' };
}

async function freeze(request: SnapshotRequest): Promise<Snapshot> {
  const { domain } = request;
  const qemu = findQemu(domain);
  if (qemu === undefined) {
    throw failed(`the QEMU process of ${domain.name} is not found on this host`, {
      hint: 'run chunkmount where the VM runs',
    });
  }
  const asked = new Date();
  const { prepared, consistency } = await takeAsAsked(request, qemu);
  // Memory is written for a while before the disks are frozen; without it, what was written before we asked is in.
  const time = consistency === 'memory' ? new Date() : asked;
  const frozen = prepared.map(({ disk }) => disk);
  await allEnded([noteMade(request, prepared), holdBases(request, frozen)]);
  return { time, consistency, disks: frozen.map((disk) => ({ target: disk.target, image: imageOf(disk) })) };
}

/**
 * A running VM goes on in qcow2 overlays, all made in one atomic snapshot, while its images stay as they are. Undone by
 * merging each overlay into its image.
 */
export const overlayProvider: SnapshotProvider = {
  kind: 'overlay',
  refusal,
  freeze,
  undo: { [OVERLAY_KIND]: undoOverlay, ...holdUndo, ...thawUndo, ...memoryUndo },
};
