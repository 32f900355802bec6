import * as fs from 'node:fs';
import { isWrittenByQemu } from '../../image/image-lock.js';
import { withDiskSource } from '../../libvirt/disk-source.js';
import { loadInactive } from '../../libvirt/load-domain.js';
import { commitOffline, showsSameDisk } from '../qemu-image.js';
import { checkBase, isBaseUntouched } from './base-check.js';
import { type OverlayCase, stuck } from './case.js';
import { isPivotAsked, noteBegun } from './merge-notes.js';
import { overlayFile } from './position.js';

/** More than a mirrored write can lag behind, or a pivot takes; the guest wrote to the base itself after that. */
const MIRROR_LAG_MS = 1_000;

/** The same where the process that was asked for the pivot still runs, and can be waiting for slow storage. */
const LONGEST_PIVOT_MS = 10_000;

function call(one: OverlayCase) {
  return { timeoutMs: Math.max(1, Math.ceil(one.deadline - performance.now())), signal: one.context.signal };
}

async function commit(one: OverlayCase): Promise<void> {
  const { record, context } = one;
  if (await isWrittenByQemu(record.overlay))
    throw stuck(one, `another program writes ${record.overlay}`, 'end it, then run cleanup again');
  checkBase(record);
  noteBegun(one);
  context.reporter.notice(`${record.domain.name} is off: merging disk ${record.target} with qemu-img`);
  await commitOffline(record.overlay, { path: record.base.path, format: record.base.format }, call(one));
}

/** Merges the overlay that the VM would start from. */
export async function mergeOffline(one: OverlayCase): Promise<void> {
  const { record, virsh } = one;
  const { name, uuid } = record.domain;
  if (await virsh.hasManagedSave(uuid)) {
    const hint = `start the VM (virsh start ${name}) and run cleanup again, or drop the saved memory: virsh managedsave-remove ${name}`;
    throw stuck(one, 'its memory was saved while it ran on the overlay, and needs that', hint);
  }
  const file = overlayFile(record);
  if (file !== 'ours')
    throw stuck(one, `the overlay ${record.overlay} is ${file}`, 'put it back, then run cleanup again');
  await commit(one);
}

/**
 * The pivot was asked for and nobody said how it ended, but the VM's definition is on the base: it succeeded if both show
 * the same disk, or if the guest went on writing to the base alone.
 */
export async function checkPivoted(one: OverlayCase): Promise<void> {
  const { overlay, base } = one.record;
  const [baseTime, overlayTime] = [base.path, overlay].map((file) => fs.statSync(file).mtimeMs);
  if (isPivotAsked(one.record, MIRROR_LAG_MS) && baseTime! > overlayTime! + MIRROR_LAG_MS) return;
  if (await showsSameDisk(overlay, base, call(one))) return;
  throw stuck(
    one,
    `${overlay} and ${base.path} differ, and it cannot be told which is newer`,
    'both are kept; choose one by hand',
  );
}

/**
 * The QEMU process that was put onto the overlay runs without it. Unless we asked it for that, either somebody merged it, or the disk was
 * unplugged and the base plugged in again, with or without anything written to it since: then the base must show what the overlay does.
 */
export async function checkLeft(one: OverlayCase): Promise<void> {
  const { record } = one;
  const { overlay, base } = record;
  if (overlayFile(record) !== 'ours' || isPivotAsked(record, LONGEST_PIVOT_MS)) return;
  if (fs.existsSync(base.path) && (await showsSameDisk(overlay, base, call(one)))) return;
  throw stuck(
    one,
    `the VM runs without its overlay ${overlay}, and ${base.path} does not hold all that is in it`,
    'both are kept; if it was merged by hand and the guest wrote on, if you have its content elsewhere (blockpull, blockcopy), or if it is not wanted, remove the overlay by hand',
  );
}

/** No VM uses the overlay. Merges what the base may lack, or makes sure that it lacks nothing. */
export async function settleUnused(one: OverlayCase): Promise<void> {
  const { record } = one;
  if (overlayFile(record) !== 'ours') return;
  if (record.pivoting === true) return checkPivoted(one);
  checkBase(record);
  if (isBaseUntouched(record)) return commit(one);
  if (await showsSameDisk(record.overlay, record.base, call(one))) return;
  throw stuck(
    one,
    `no VM refers to ${record.overlay} any more, and ${record.base.path} may have been written since`,
    `both are kept; if the base was not written: qemu-img commit -d -f qcow2 ${record.overlay}`,
  );
}

/** Puts the disk's part of the persistent definition back to what it was, if it still names the overlay. */
export async function restoreDefinition({ record, virsh }: OverlayCase): Promise<void> {
  if (record.definition === undefined) return;
  const { uuid } = record.domain;
  if (!(await virsh.list('persistent')).some((domain) => domain.uuid === uuid)) return;
  const disk = (await loadInactive(virsh, uuid)).disks.find(({ target }) => target === record.target);
  if (disk?.path !== record.overlay) return;
  const { type, format, source, backingStore } = record.definition;
  const wanted = { type, format, source, backingStore };
  await virsh.define(withDiskSource(await virsh.definition(uuid), record.target, wanted));
}
