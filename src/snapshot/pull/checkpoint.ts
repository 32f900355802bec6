import * as v from 'valibot';
import { failed, messageOf } from '../../errors.js';
import { run } from '../../host/exec.js';
import { isWrittenByQemu } from '../../image/image-lock.js';
import { qcow2Info } from '../../image/qcow2-info.js';
import { deleteCheckpoint, listCheckpoints } from '../../libvirt/checkpoints.js';
import { removeQemuBitmaps } from '../../libvirt/qemu-bitmaps.js';
import { isAnswer, Virsh } from '../../libvirt/virsh.js';
import type { JournalEntry } from '../../session/journal.js';
import type { UndoContext, UndoHandler } from '../../session/undo.js';
import { identityOf, imageIdentity, isSameImage } from '../image-identity.js';
import { CHECKPOINT_KIND } from '../watched-kinds.js';

const checkpointRecord = v.object({
  /** Id of the session that made it. */
  session: v.string(),
  connect: v.optional(v.string()),
  domain: v.object({ uuid: v.string(), name: v.string() }),
  /** Unique among all sessions, and the name of its bitmap in each image, too. */
  checkpoint: v.string(),
  /** The disks that have a bitmap in it, and the qcow2 images that hold the bitmaps. */
  targets: v.array(v.string()),
  images: v.array(v.object({ path: v.string(), identity: imageIdentity })),
});

/** A checkpoint of a VM: from it on QEMU records in each image what is written. */
export type CheckpointRecord = v.InferOutput<typeof checkpointRecord>;

/** The record of a `checkpoint` entry. Throws if the journal holds something else. */
function readCheckpointRecord(entry: JournalEntry): CheckpointRecord {
  return v.parse(checkpointRecord, entry.data);
}

/** Why the bitmaps can only be removed later; undefined once none is left in the images, which no VM has open. */
async function removeFromImage(
  { path, identity }: CheckpointRecord['images'][number],
  name: string,
): Promise<string | undefined> {
  const now = identityOf(path);
  // Another image took its place: a bitmap in that one, if any, is none that we made.
  if (now === undefined || !isSameImage(now, identity)) return undefined;
  if (await isWrittenByQemu(path)) return `a program has ${path} open`;
  const { bitmaps } = await qcow2Info(path);
  if (bitmaps.every((bitmap) => bitmap.name !== name)) return undefined;
  // libvirt before 6.8 let only the newest one record: without that, the older ones would miss a part.
  if (bitmaps.some((bitmap) => bitmap.name !== name && !bitmap.recording))
    return `the older bitmaps in ${path} need it`;
  await run('qemu-img', ['bitmap', '--remove', '-f', 'qcow2', path, name]);
  return undefined;
}

async function removeBitmaps({ images, checkpoint }: CheckpointRecord): Promise<string[]> {
  const problems: string[] = [];
  for (const image of images) {
    const problem = await removeFromImage(image, checkpoint);
    if (problem !== undefined) problems.push(problem);
  }
  return problems;
}

/** A checkpoint that libvirt cannot delete as a whole: its metadata, then what is left in the images that QEMU has open. */
async function deleteBroken(virsh: Virsh, record: CheckpointRecord): Promise<void> {
  const { domain, checkpoint } = record;
  if ((await listCheckpoints(virsh, domain.uuid)).includes(checkpoint))
    await deleteCheckpoint(virsh, domain.uuid, checkpoint, { metadata: true });
  await removeQemuBitmaps(virsh, domain.uuid, checkpoint);
}

async function deleteLive(virsh: Virsh, entry: JournalEntry, context: UndoContext): Promise<void> {
  const record = readCheckpointRecord(entry);
  const { domain, checkpoint } = record;
  if ((await virsh.domainJob(domain.uuid)) !== undefined) {
    throw failed(`checkpoint ${checkpoint} of ${domain.name} cannot be deleted: a job works on the VM`, {
      hint: `see virsh domjobinfo ${domain.name}; when it has ended, run cleanup again`,
    });
  }
  try {
    if ((await listCheckpoints(virsh, domain.uuid)).includes(checkpoint))
      return await deleteCheckpoint(virsh, domain.uuid, checkpoint, { metadata: false });
    // Never made: libvirt makes all of it or nothing.
    if (!entry.done) return;
  } catch (error) {
    if (!isAnswer(error) || (await virsh.domainJob(domain.uuid)) !== undefined) throw error;
    context.reporter.debug(`checkpoint ${checkpoint} of ${domain.name} is broken: ${messageOf(error)}`);
  }
  await deleteBroken(virsh, record);
}

async function deleteOffline(virsh: Virsh, record: CheckpointRecord, context: UndoContext): Promise<void> {
  const { domain, checkpoint } = record;
  const defined = (await virsh.list()).some(({ uuid }) => uuid === domain.uuid);
  const [problem] = await removeBitmaps(record);
  if (problem !== undefined && !defined) {
    context.reporter.warn(
      `${domain.name} is gone, and ${problem}: the bitmap ${checkpoint} stays in there (qemu-img bitmap --remove)`,
    );
    return;
  }
  if (problem !== undefined) {
    throw failed(`checkpoint ${checkpoint} of ${domain.name} cannot be deleted: ${problem}`, {
      hint: `start ${domain.name}, or end what has it open; then run cleanup again`,
    });
  }
  if (defined && (await listCheckpoints(virsh, domain.uuid)).includes(checkpoint))
    await deleteCheckpoint(virsh, domain.uuid, checkpoint, { metadata: true });
}

/** Deletes a checkpoint and its bitmaps, whatever libvirt still knows of it. The older ones go on. */
const undoCheckpoint: UndoHandler = async (entry, context) => {
  const record = readCheckpointRecord(entry);
  const virsh = new Virsh({ connect: record.connect, signal: context.signal });
  const active = (await virsh.list('active')).some(({ uuid }) => uuid === record.domain.uuid);
  if (active) await deleteLive(virsh, entry, context);
  else await deleteOffline(virsh, record, context);
};

export const checkpointUndo = { [CHECKPOINT_KIND]: undoCheckpoint };
