import * as fs from 'node:fs';
import { bootId } from '../../host/process-identity.js';
import { findProcesses } from '../../host/process-list.js';
import { isWrittenByQemu } from '../../image/image-lock.js';
import { countSnapshots } from '../../image/qcow2-snapshots.js';
import type { UndoHandler } from '../../session/undo.js';
import { domainReferringTo } from '../references.js';
import { type OverlayCase, overlayCase, stuck } from './case.js';
import { mergeLive, mergeMiddle } from './merge-live.js';
import { isKnownMerged, noteMerged } from './merge-notes.js';
import { checkLeft, checkPivoted, mergeOffline, restoreDefinition, settleUnused } from './merge-offline.js';
import { refuseUnderOthers } from './others.js';
import { findOverlay, type OverlayPosition, overlayFile } from './position.js';
import { entriesOn, passOnBase, wasMergedFromBelow } from './stack.js';

/** libvirt was seen to finish a snapshot seconds after the program that had asked for it was killed. */
const LATE_SNAPSHOT_MS = 60_000;
/** So long a request may be on its way to libvirtd without any trace of it. */
const UNSEEN_REQUEST_MS = 5_000;
const LOOK_AGAIN_MS = 500;

/** A VM that stops or starts while its disk is merged makes another way the right one. */
const MAX_CHANGES_OF_WAY = 3;

/** Nothing that libvirt or QEMU knows of has the overlay in a chain. */
function isAbsent({ kind }: OverlayPosition): boolean {
  return kind === 'left' || kind === 'unused while off' || kind === 'bypassed';
}

/**
 * Whether libvirt may still make the snapshot: it was asked a short while ago, in this boot, and did not answer. Throws when it
 * has been busy with the VM for longer than that.
 */
async function mayStillCome(one: OverlayCase): Promise<boolean> {
  const { askedAt, answered, file, domain, target } = one.record;
  if (askedAt === undefined || answered === true || file?.bootId !== bootId()) return false;
  const age = Date.now() - askedAt;
  const asking = (argv: readonly string[]) => argv.includes('snapshot-create') && argv.includes(domain.uuid);
  if (age < UNSEEN_REQUEST_MS || findProcesses(asking).length > 0) return age < LATE_SNAPSHOT_MS;
  // While libvirt makes a snapshot it lets nobody else look at the disks.
  if (await one.virsh.answersAbout(domain.uuid, target)) return false;
  if (age < LATE_SNAPSHOT_MS) return true;
  throw stuck(
    one,
    'libvirt has been busy with the VM since the snapshot was asked for',
    'see virsh domjobinfo; then run cleanup again',
  );
}

/** Looks where the overlay is, until libvirt shows it or it cannot come any more. QEMU has it a moment before libvirt says so. */
async function settle(one: OverlayCase): Promise<OverlayPosition> {
  const { record, virsh, context } = one;
  for (;;) {
    const last = !(await mayStillCome(one));
    const position = await findOverlay(virsh, record);
    if (last || !(isAbsent(position) || position.kind === 'unknown to libvirt')) return position;
    context.reporter.debug(`disk ${record.target}: its snapshot may still come; looking again`);
    context.signal?.throwIfAborted();
    await new Promise((resolve) => setTimeout(resolve, LOOK_AGAIN_MS));
  }
}

async function act(one: OverlayCase, position: OverlayPosition): Promise<void> {
  const { context, record } = one;
  const { domain, target, overlay, base } = record;
  switch (position.kind) {
    case 'top':
    case 'merging':
      return mergeLive(one, position.kind === 'merging');
    case 'middle':
      return mergeMiddle(one, position.above);
    case 'top while off':
      return mergeOffline(one);
    case 'unused while off':
      return settleUnused(one);
    case 'left':
      return checkLeft(one);
    case 'bypassed':
      if (overlayFile(one.record) !== 'ours') return;
      if (one.record.pivoting === true) return checkPivoted(one);
      throw stuck(
        one,
        `the VM was started again on ${base.path}, without its overlay ${overlay}`,
        'both are kept: the overlay has what the VM wrote after the snapshot, the base what it wrote since; choose one by hand, and remove the overlay if it is not wanted',
      );
    case 'middle while off':
      throw stuck(
        one,
        'another snapshot lies on it, and the VM is off',
        'start the VM and run cleanup again, or merge that snapshot first',
      );
    case 'unknown to libvirt':
      throw stuck(
        one,
        `the VM writes to ${overlay}, but libvirt takes it to be on ${base.path}`,
        'shut the VM down, then run cleanup again',
      );
    case 'standalone':
      return context.reporter.warn(
        `disk ${target} of ${domain.name}: ${base.path} was copied into the overlay ${overlay}, which is the VM's image from now on`,
      );
    case 'strange':
      throw stuck(one, position.why, 'see virsh dumpxml; end what works on the disk, then run cleanup again');
  }
}

/** Where the VM can still go back to the snapshots that an overlay has inside. */
const ON_OVERLAY: ReadonlySet<OverlayPosition['kind']> = new Set([
  'top',
  'middle',
  'top while off',
  'middle while off',
]);

/** Throws if somebody made an internal snapshot of the VM since: it is in the overlay, and would go with the file. */
function refuseLosingSnapshots(one: OverlayCase, hint: string): void {
  const { record } = one;
  if (overlayFile(record) !== 'ours' || countSnapshots(record.overlay) === 0) return;
  throw stuck(one, `internal snapshots were made since, are in ${record.overlay} and would be lost`, hint);
}

/** Removes the overlay's file, once it is certain that it is ours and nobody needs it. */
async function removeFile(one: OverlayCase): Promise<void> {
  const { record, virsh, context } = one;
  const file = overlayFile(record);
  if (file === 'missing') return;
  if (file === 'foreign') {
    context.reporter.warn(
      `${record.overlay} is not the file that was made for the snapshot any more, and is left alone`,
    );
    return;
  }
  const user = await domainReferringTo(virsh, record.overlay);
  if (user !== undefined)
    throw stuck(one, `${user} still refers to ${record.overlay}`, `see virsh dumpxml ${user}`);
  if (await isWrittenByQemu(record.overlay)) {
    throw stuck(one, `another program writes ${record.overlay}`, 'end it, then run cleanup again');
  }
  refuseLosingSnapshots(one, 'all else is done: remove the file by hand if nobody needs them');
  fs.unlinkSync(record.overlay);
}

/** Whether both positions lead to the same way of merging. */
function isSameWay(a: OverlayPosition, b: OverlayPosition): boolean {
  const live = ({ kind }: OverlayPosition) => kind === 'top' || kind === 'merging';
  return a.kind === b.kind || (live(a) && live(b));
}

/** Where an overlay is when it cannot be merged from below. */
const NOT_FROM_BELOW: ReadonlySet<OverlayPosition['kind']> = new Set([
  'top while off',
  'middle while off',
  'unused while off',
  'left',
  'bypassed',
]);

/** Where an overlay cannot be merged from below, what was made on it is merged into it first. Returns whether there was anything. */
async function undoAbove(one: OverlayCase, { kind }: OverlayPosition): Promise<boolean> {
  const above = NOT_FROM_BELOW.has(kind) ? entriesOn(one) : [];
  for (const entry of above) {
    await undoOverlay(entry, one.context);
    one.context.journal.undone(entry);
  }
  return above.length > 0;
}

/** Returns whether the overlay is ours still: else it stays where it is. */
async function merge(one: OverlayCase): Promise<boolean> {
  const { context, virsh, record } = one;
  for (let change = 0; ; change++) {
    const position = await settle(one);
    context.reporter.debug(`disk ${record.target}: overlay ${record.overlay} is "${position.kind}"`);
    // Merged before; but the VM may have been started on the overlay again since.
    if (isKnownMerged(one.record) && isAbsent(position)) return true;
    if (isAbsent(position) && (await wasMergedFromBelow(one))) {
      await passOnBase(one, { unseen: true });
      return true;
    }
    refuseUnderOthers(one);
    if (ON_OVERLAY.has(position.kind))
      refuseLosingSnapshots(
        one,
        `virsh snapshot-list ${record.domain.name} shows them: once they are not needed, delete them, then run cleanup again`,
      );
    if (await undoAbove(one, position)) continue;
    try {
      await act(one, position);
      return position.kind !== 'standalone';
    } catch (error) {
      const now = await findOverlay(virsh, record);
      if (isSameWay(now, position) || change === MAX_CHANGES_OF_WAY) throw error;
      context.reporter.debug(`disk ${record.target}: the VM's state changed, trying again`);
    }
  }
}

/**
 * Merges one overlay back into its base, from wherever it is now, puts the VM back onto the base, and removes the file.
 * Throws, with everything kept, when the content cannot be shown to be in the base.
 */
export const undoOverlay: UndoHandler = async (entry, context) => {
  const one = overlayCase(entry, context);
  if (!(await merge(one))) return;
  await noteMerged(one);
  await restoreDefinition(one);
  await removeFile(one);
};
