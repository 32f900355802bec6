import * as fs from 'node:fs';
import * as path from 'node:path';
import { ChunkmountError, failed, messageOf } from '../../errors.js';
import { fsyncDirectory } from '../../host/durable.js';
import { readChain } from '../../image/chain.js';
import type { Disk } from '../../libvirt/domain.js';
import { findQemu } from '../../libvirt/qemu-process.js';
import type { JournalEntry } from '../../session/journal.js';
import { diskRefusal } from '../disk-refusal.js';
import { HOLD_KIND, holdImages, holdUndo } from '../hold.js';
import { identityOfDescriptor, writeMark } from '../image-identity.js';
import { imageOf } from '../none.js';
import { jobRefusal } from '../overlay/provider.js';
import { pauseUndo, whilePaused } from '../pause.js';
import type { FrozenDisk, Snapshot, SnapshotProvider, SnapshotRequest } from '../provider.js';
import { REFLINK_KIND } from '../watched-kinds.js';
import { clonePath, makeCloneFile, matchAttributes, sealClone } from './clone-file.js';
import { type CloneRecord, cloneUndo } from './clone-record.js';
import { cloneRefusal, SOURCE_NAME, shareBlocks, TARGET_NAME } from './share-blocks.js';

/** One file holds such an image, and QEMU has written all of it when it stands still. */
const FORMATS: ReadonlySet<string> = new Set(['raw', 'qcow2']);

type RefusalRequest = Parameters<SnapshotProvider['refusal']>[0];

async function reasonAgainst(request: RefusalRequest, disk: Disk): Promise<string | undefined> {
  const general = diskRefusal(disk);
  if (general !== undefined) return general;
  if (!FORMATS.has(imageOf(disk).format)) return `a clone of the format ${disk.format} is not supported`;
  if (request.domain.active) {
    const job = await jobRefusal(request, disk);
    if (job !== undefined) return job;
  }
  return cloneRefusal(disk.path!, request.signal);
}

async function refusal(request: RefusalRequest, disk: Disk): Promise<string | undefined> {
  const reason = await reasonAgainst(request, disk);
  return reason === undefined ? undefined : `disk ${disk.target}: ${reason}`;
}

interface Preparation {
  readonly disk: Disk;
  readonly clone: string;
  readonly entry: JournalEntry;
  /** Of the image, and of its clone, which is empty. */
  readonly source: number;
  readonly target: number;
}

/** Opens the image and makes the clone's file. Whatever it opened is in `prepared`, also when it throws. */
async function prepare(request: SnapshotRequest, disk: Disk, open: number[]): Promise<Preparation> {
  const { sessionId, journal, signal } = request;
  const image = disk.path!;
  const clone = clonePath(disk, sessionId);
  const source = fs.openSync(image, 'r');
  open.push(source);
  const record: CloneRecord = {
    session: sessionId,
    target: disk.target,
    clone,
    image: { path: image, identity: identityOfDescriptor(source) },
  };
  const entry = journal.intend(REFLINK_KIND, { ...record });
  try {
    const { fd, identity } = makeCloneFile(clone);
    open.push(fd);
    journal.done(entry, { file: identity });
    await matchAttributes(image, clone, signal);
    return { disk, clone, entry, source, target: fd };
  } catch (error) {
    // Nothing was made; what has that name now is somebody else's.
    if (error instanceof ChunkmountError && open.at(-1) === source) journal.undone(entry);
    throw error;
  }
}

async function fill({ disk, clone, source, target }: Preparation, signal?: AbortSignal): Promise<void> {
  try {
    await shareBlocks(source, target, signal);
  } catch (error) {
    signal?.throwIfAborted();
    const said = messageOf(error).replaceAll(SOURCE_NAME, disk.path!).replaceAll(TARGET_NAME, clone);
    throw failed(`no clone of ${disk.path} could be made: ${said}`, {
      hint: 'is there space left on its file system? else take another kind (--snapshot=overlay)',
      cause: error,
    });
  }
}

/** One raw file is cloned as of one moment. Several, or QEMU's caches of a qcow2, which it writes when it stops, have to stand still. */
function needsPause(prepared: readonly Preparation[]): boolean {
  return prepared.length > 1 || prepared.some(({ disk }) => imageOf(disk).format !== 'raw');
}

async function fillAll(request: SnapshotRequest, prepared: readonly Preparation[]): Promise<void> {
  const { virsh, domain, journal, reporter, signal } = request;
  const work = async () => {
    for (const one of prepared) await fill(one, signal);
  };
  if (!domain.active) return whileHeld(request, work);
  if (!needsPause(prepared)) return work();
  const qemu = findQemu(domain);
  if (qemu === undefined) throw failed(`the QEMU process of ${domain.name} is not found on this host`);
  const stood = await whilePaused({ virsh, domain, qemu, journal }, work);
  if (stood > 0) reporter.notice(`${domain.name} was paused for ${Math.round(stood)} ms`);
}

/** A VM that is off cannot be started between the clones of its disks. */
async function whileHeld(request: SnapshotRequest, work: () => Promise<void>): Promise<void> {
  const { disks, journal, reporter, signal } = request;
  await holdImages({ images: disks.map(({ path: image }) => image!), journal, signal });
  await work();
  const hold = journal.find(HOLD_KIND)!;
  await holdUndo[HOLD_KIND](hold, { journal, reporter });
  journal.undone(hold);
}

/** Makes the clone what is read; what lies below it is not cloned, but must not be written. Returns the files to be held for that. */
async function finish(request: SnapshotRequest, one: Preparation): Promise<readonly string[]> {
  const { journal, reporter, signal } = request;
  const { disk, clone, entry, target } = one;
  sealClone(target);
  fsyncDirectory(path.dirname(clone));
  journal.done(entry, { mark: writeMark(clone) });
  const [top, ...below] = await readChain({ ...imageOf(disk), path: clone }, { reporter, signal });
  if (top.dataFile !== undefined) {
    throw failed(
      `disk ${disk.target}: its data is in ${top.dataFile.path}, and a clone of ${disk.path} does not freeze that`,
      { hint: 'take another kind: --snapshot=overlay' },
    );
  }
  return below.flatMap(({ path: file, dataFile }) => [
    file,
    ...(dataFile === undefined ? [] : [dataFile.path]),
  ]);
}

async function freeze(request: SnapshotRequest): Promise<Snapshot> {
  const { domain, disks, journal, signal } = request;
  const open: number[] = [];
  try {
    const prepared: Preparation[] = [];
    for (const disk of disks) prepared.push(await prepare(request, disk, open));
    const time = new Date();
    await fillAll(request, prepared);
    const below: string[] = [];
    for (const one of prepared) below.push(...(await finish(request, one)));
    await holdImages({ images: below, journal, signal });
    const frozen = prepared.map(
      ({ disk, clone }): FrozenDisk => ({
        target: disk.target,
        image: { path: clone, format: imageOf(disk).format },
      }),
    );
    return { time, consistency: domain.active ? 'crash' : 'offline', disks: frozen };
  } finally {
    for (const fd of open) fs.closeSync(fd);
  }
}

/**
 * Clones of the image files that share their blocks, on XFS and Btrfs: made in a moment, whatever their size. The VM goes on with
 * its images, and takes new blocks for what it overwrites. Undone by removing the clones.
 */
export const reflinkProvider: SnapshotProvider = {
  kind: 'reflink',
  refusal,
  freeze,
  undo: { ...cloneUndo, ...holdUndo, ...pauseUndo },
};
