import { isWrittenByQemu } from '../../image/image-lock.js';
import { identityOf } from '../image-identity.js';
import { usesFile } from '../references.js';
import { checkBase } from './base-check.js';
import { type OverlayCase, stuck } from './case.js';
import { liveDisk, type MergeWatch, Pacer, watchJob } from './commit-job.js';
import { noteBegun, notePivoting } from './merge-notes.js';
import { passOnBase } from './stack.js';
import { isStoppedByWriteError } from './write-error.js';

function watchOf({ virsh, context, record, deadline }: OverlayCase): MergeWatch {
  const { domain, target } = record;
  return { virsh, reporter: context.reporter, uuid: domain.uuid, name: domain.name, target, deadline };
}

async function begin(one: OverlayCase, active: boolean): Promise<void> {
  const { record, virsh } = one;
  checkBase(record);
  noteBegun(one);
  const merge = { base: record.base.path, top: record.overlay, active };
  await virsh.blockCommit(record.domain.uuid, record.target, merge);
}

function notMerged(one: OverlayCase): Error {
  const { path } = one.record.base;
  const hint = `the VM runs on and nothing is lost; is there space where ${path} lies? then run cleanup again`;
  return stuck(one, "libvirt's job ended without success", hint);
}

/** Waits until the guest's writes go to the base. */
async function untilOnBase(one: OverlayCase): Promise<void> {
  const watch = watchOf(one);
  const pacer = new Pacer(watch);
  for (;;) {
    const disk = await liveDisk(watch);
    if (disk?.path === one.record.base.path && disk.mirror === undefined) return;
    if (disk === undefined || disk.mirror === undefined) throw notMerged(one);
    await pacer.wait();
  }
}

/**
 * A guest that was stopped because an overlay's file system was full can go on: what it could not write goes to the base. One that
 * a write error had stopped before the snapshot is left to whoever mends that.
 */
async function resumeAfterFullDisk({ virsh, record, context }: OverlayCase): Promise<void> {
  if (record.stoppedBefore === true || !(await isStoppedByWriteError(virsh, record.domain.uuid))) return;
  context.reporter.notice(
    `${record.domain.name} was stopped by a write error while on its overlay, and is resumed`,
  );
  await virsh.resume(record.domain.uuid);
}

/** Merges the overlay that the guest writes to, and switches the guest back to the base. */
export async function mergeLive(one: OverlayCase, started: boolean): Promise<void> {
  const { virsh } = one;
  const { domain, target, overlay } = one.record;
  if (started) noteBegun(one);
  else await begin(one, true);
  const disk = await watchJob(watchOf(one), ({ mirror }) => mirror === undefined || mirror.ready);
  if (disk.mirror === undefined && disk.path === overlay) throw notMerged(one);
  if (disk.mirror !== undefined) {
    notePivoting(one);
    await virsh.blockJobPivot(domain.uuid, target);
  }
  await untilOnBase(one);
  await resumeAfterFullDisk(one);
}

/** Records what lies on the overlay: by that it shows later that the merge came to its end. */
function noteAbove({ context, entry }: OverlayCase, above: string): void {
  const identity = identityOf(above);
  if (identity !== undefined) context.journal.done(entry, { above: { path: above, identity } });
}

/**
 * Merges the overlay although another snapshot, `above`, lies on it: that one then lies on the base. If that one is ours, too, its
 * record says so from then on.
 */
export async function mergeMiddle(one: OverlayCase, above: string): Promise<void> {
  const { record, virsh } = one;
  const { overlay, base, domain, target } = record;
  // By a cleanup that was killed, or failed: what others did to the base since cannot be told.
  const begunBefore = record.committing === true;
  const goesOn = begunBefore && (await virsh.blockJob(domain.uuid, target)) !== undefined;
  if (!goesOn || record.above === undefined) {
    noteAbove(one, above);
    await begin(one, false);
  }
  const disk = await watchJob(watchOf(one));
  if (usesFile(disk, overlay)) throw notMerged(one);
  await passOnBase(one, { unseen: begunBefore || isWrittenByQemu(base.path) });
}
