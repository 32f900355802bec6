import { ChunkmountError, failed, messageOf } from '../../errors.js';
import { NotStartedError } from '../../host/command-error.js';
import { bootId, type ProcessIdentity } from '../../host/process-identity.js';
import { type Qcow2Info, qcow2Info } from '../../image/qcow2-info.js';
import { beginBackup } from '../../libvirt/backup-job.js';
import type { Disk } from '../../libvirt/domain.js';
import { findQemu } from '../../libvirt/qemu-process.js';
import { isAnswer } from '../../libvirt/virsh.js';
import type { JournalEntry } from '../../session/journal.js';
import { diskRefusal } from '../disk-refusal.js';
import { identityOf } from '../image-identity.js';
import { imageOf } from '../none.js';
import { makeOverlayFile } from '../overlay/files.js';
import { jobRefusal } from '../overlay/provider.js';
import type { Snapshot, SnapshotProvider, SnapshotRequest } from '../provider.js';
import { CHECKPOINT_KIND, PULL_JOB_KIND, PULL_KIND } from '../watched-kinds.js';
import { type CheckpointRecord, checkpointUndo } from './checkpoint.js';
import { isJobThere } from './job.js';
import {
  checkScratchSpace,
  closeSocketDirectory,
  formatScratch,
  makeSocketDirectory,
  scratchPath,
  socketDirectory,
} from './place.js';
import { type JobRecord, type PullRecord, readJobRecord } from './record.js';
import { pullUndo } from './undo.js';

type RefusalRequest = Parameters<SnapshotProvider['refusal']>[0];

async function refusal(request: RefusalRequest, disk: Disk): Promise<string | undefined> {
  const { domain } = request;
  const because = (reason: string | undefined) =>
    reason === undefined ? undefined : `disk ${disk.target}: ${reason}`;
  const general = diskRefusal(disk);
  if (general !== undefined) return because(general);
  if (domain.state !== 'running' && domain.state !== 'paused')
    return because(`${domain.name} is ${domain.state}, and only a running VM has backup jobs`);
  return because(await jobRefusal(request, disk));
}

interface Preparation {
  readonly disk: Disk;
  readonly scratch: string;
  readonly entry: JournalEntry;
  /** Why there can be no bitmap in its image; undefined if there can. */
  readonly noBitmap: string | undefined;
}

/** Undefined: it was not readable in this moment, in which QEMU may have been writing it. */
async function headerOf(path: string, signal: AbortSignal | undefined): Promise<Qcow2Info | undefined> {
  try {
    return await qcow2Info(path, signal);
  } catch {
    signal?.throwIfAborted();
    return undefined;
  }
}

async function bitmapObstacle(disk: Disk, signal: AbortSignal | undefined): Promise<string | undefined> {
  const { path, format } = imageOf(disk);
  if (format !== 'qcow2') return `it is ${format}, and only qcow2 images can hold bitmaps`;
  if (disk.readonly) return 'it is read-only';
  const info = await headerOf(path, signal);
  if (info === undefined) return 'the header of its image could not be read';
  const { version3, dataElsewhere } = info;
  if (!version3)
    return 'its image is of version 2 of qcow2, which has no bitmaps (qemu-img amend -o compat=1.1)';
  return dataElsewhere ? 'its data are in another file than its bitmaps' : undefined;
}

async function prepare(
  request: SnapshotRequest,
  disk: Disk,
  qemu: ProcessIdentity,
  socket: string,
): Promise<Preparation> {
  const { virsh, domain, sessionId, options, journal, signal } = request;
  const { path, format } = imageOf(disk);
  const identity = identityOf(path);
  if (identity === undefined) throw failed(`${path}, the image of disk ${disk.target}, is not on this host`);
  const scratch = scratchPath(disk, sessionId, options.overlayDirectory);
  checkScratchSpace(scratch);
  const noBitmap = await bitmapObstacle(disk, signal);
  const size = await virsh.diskSize(domain.uuid, disk.target);
  const record: PullRecord = {
    session: sessionId,
    domain: { uuid: domain.uuid, name: domain.name },
    target: disk.target,
    scratch,
    socket,
    qemu,
    image: { path, format, identity, backing: disk.backing && [...disk.backing] },
  };
  const entry = journal.intend(PULL_KIND, record);
  try {
    journal.done(entry, { file: makeOverlayFile(scratch) });
  } catch (error) {
    // Nothing was made; what has that name now is somebody else's.
    if (error instanceof ChunkmountError) journal.undone(entry);
    throw error;
  }
  await formatScratch(scratch, size, signal);
  return { disk, scratch, entry, noBitmap };
}

interface Attempt {
  /** Disks whose changes since a checkpoint are wanted. */
  readonly since: ReadonlyMap<string, string>;
  readonly checkpoint: { readonly name: string; readonly targets: readonly string[] } | undefined;
}

/** With less and less wanted beside the disks themselves: bitmaps are broken by every crash. */
function attempts({ options, sessionId }: SnapshotRequest, prepared: readonly Preparation[]): Attempt[] {
  const able = prepared.flatMap(({ disk, noBitmap }) => (noBitmap === undefined ? [disk.target] : []));
  const none: Attempt = { since: new Map(), checkpoint: undefined };
  if (options.checkpoints === undefined || able.length === 0) return [none];
  const checkpoint = { name: `cm-${sessionId}`, targets: able };
  const since = new Map([...options.checkpoints.since].filter(([target]) => able.includes(target)));
  return [...(since.size === 0 ? [] : [{ since, checkpoint }]), { since: new Map(), checkpoint }, none];
}

/** A job that is being asked for. */
interface Job {
  readonly entry: JournalEntry;
  readonly record: JobRecord;
  readonly prepared: readonly Preparation[];
}

function beginJob(request: SnapshotRequest, prepared: readonly Preparation[], record: JobRecord): Job {
  return { entry: request.journal.intend(PULL_JOB_KIND, record), record, prepared };
}

async function ask(
  request: SnapshotRequest,
  { entry, record, prepared }: Job,
  attempt: Attempt,
): Promise<void> {
  const { virsh, domain, journal } = request;
  journal.done(entry, { askedAt: Date.now(), answered: false });
  const plan = {
    socket: record.socket,
    targets: domain.disks.map(({ target }) => target),
    disks: prepared.map(({ disk: { target }, scratch }) => ({
      target,
      scratch,
      since: attempt.since.get(target),
    })),
    checkpoint: attempt.checkpoint,
  };
  try {
    await beginBackup(virsh, domain.uuid, plan);
  } catch (error) {
    if (isAnswer(error) || error instanceof NotStartedError) journal.done(entry, { answered: true });
    throw error;
  }
  journal.done(entry, { answered: true });
}

interface Begun {
  readonly attempt: Attempt;
  /** Why less was had than was wanted. */
  readonly reason: string | undefined;
}

async function begin(request: SnapshotRequest, job: Job): Promise<Begun> {
  const { domain, reporter, signal } = request;
  const all = attempts(request, job.prepared);
  let reason: string | undefined;
  for (const [number, attempt] of all.entries()) {
    try {
      await ask(request, job, attempt);
      return { attempt, reason };
    } catch (error) {
      signal?.throwIfAborted();
      if (!isAnswer(error) || number === all.length - 1) {
        throw failed(`no backup job of ${domain.name} could be begun: ${messageOf(error)}`, {
          hint: 'is there space for scratch files, and may QEMU write there and make its socket in /run/chunkmount (AppArmor, SELinux)? --snapshot=overlay does without',
          cause: error,
        });
      }
      reason ??= messageOf(error);
      reporter.debug(`${domain.name}: asked for less, because ${messageOf(error)}`);
    }
  }
  throw new Error('unreachable: the last attempt throws');
}

/** Recorded before it is made, with the bitmaps' images. */
function recordCheckpoint(
  request: SnapshotRequest,
  prepared: readonly Preparation[],
): JournalEntry | undefined {
  const { virsh, domain, journal, sessionId } = request;
  const wanted = attempts(request, prepared)[0]?.checkpoint;
  if (wanted === undefined) return undefined;
  const able = prepared.filter(({ disk }) => wanted.targets.includes(disk.target));
  const record: CheckpointRecord = {
    session: sessionId,
    connect: virsh.options.connect,
    domain: { uuid: domain.uuid, name: domain.name },
    checkpoint: wanted.name,
    targets: [...wanted.targets],
    images: able.map(({ disk }) => ({ path: disk.path!, identity: identityOf(disk.path!)! })),
  };
  return journal.intend(CHECKPOINT_KIND, record);
}

/** What the trackers go by, now that the job keeps others from changing the images. */
async function recordBegun(
  { journal, options, signal }: SnapshotRequest,
  { disk, entry, noBitmap }: Preparation,
  { attempt, reason }: Begun,
): Promise<void> {
  const { checkpoint, since } = attempt;
  const wanted = options.checkpoints !== undefined;
  const qcow2 = noBitmap === undefined ? await headerOf(disk.path!, signal) : undefined;
  const inCheckpoint = checkpoint?.targets.includes(disk.target) === true;
  const hadBase = options.checkpoints?.since.has(disk.target) === true;
  journal.done(entry, {
    ...(inCheckpoint
      ? { checkpoint: checkpoint.name }
      : { noCheckpoint: noBitmap ?? (wanted ? (reason ?? 'none was made') : 'none was asked for') }),
    ...(since.has(disk.target)
      ? { since: since.get(disk.target) }
      : { notSince: hadBase ? (noBitmap ?? reason ?? 'it was not asked for') : 'no checkpoint was kept' }),
    ...(qcow2 === undefined ? {} : { snapshots: qcow2.snapshots }),
  });
}

async function freeze(request: SnapshotRequest): Promise<Snapshot> {
  const { virsh, domain, disks, sessionId, journal, signal } = request;
  const qemu = findQemu(domain);
  if (qemu === undefined) {
    throw failed(`the QEMU process of ${domain.name} is not found on this host`, {
      hint: 'run chunkmount where the VM runs',
    });
  }
  const directory = socketDirectory(sessionId);
  const socket = `${directory}/nbd`;
  const prepared: Preparation[] = [];
  for (const disk of disks) prepared.push(await prepare(request, disk, qemu, socket));
  signal?.throwIfAborted();
  const checkpoint = recordCheckpoint(request, prepared);
  const job = beginJob(request, prepared, {
    session: sessionId,
    connect: virsh.options.connect,
    domain: { uuid: domain.uuid, name: domain.name },
    qemu,
    directory,
    socket,
    scratches: prepared.map(({ scratch }) => scratch),
    targets: disks.map(({ target }) => target),
    askedAt: Date.now(),
    bootId: bootId(),
  });
  makeSocketDirectory(directory, qemu);
  const time = new Date();
  const begun = await begin(request, job);
  if (checkpoint !== undefined && begun.attempt.checkpoint !== undefined) journal.done(checkpoint);
  closeSocketDirectory(directory, socket);
  if (!(await isJobThere(virsh, readJobRecord(job.entry)))) {
    throw failed(`libvirt began a backup job of ${domain.name}, but not the one that it should`, {
      hint: `does somebody else back it up? see virsh domjobinfo ${domain.name}`,
    });
  }
  for (const one of prepared) await recordBegun(request, one, begun);
  const frozen = disks.map(({ target }) => ({
    target,
    image: { path: socket, format: 'raw', nbdExport: target },
  }));
  return { time, consistency: 'crash', disks: frozen };
}

/**
 * libvirt's backup job: QEMU serves each disk as it was, and saves in a scratch file what the guest overwrites meanwhile; the VM
 * stays on its images. Undone by ending the job. A checkpoint made with it lets the next session know what was written since.
 */
export const pullProvider: SnapshotProvider = {
  kind: 'pull',
  refusal,
  freeze,
  undo: { ...pullUndo, ...checkpointUndo },
};
