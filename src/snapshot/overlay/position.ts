import * as fs from 'node:fs';
import type { ProcessIdentity } from '../../host/process-identity.js';
import type { Disk } from '../../libvirt/domain.js';
import type { DomainDescription } from '../../libvirt/domain-xml.js';
import { loadDescription, loadInactive } from '../../libvirt/load-domain.js';
import { findQemu } from '../../libvirt/qemu-process.js';
import type { Virsh } from '../../libvirt/virsh.js';
import { identityOf, isSameImage } from '../image-identity.js';
import { holdsOpen } from '../open-files.js';
import type { OverlayRecord } from './record.js';

/** Where an overlay of ours is found, in the host's real state. */
export type OverlayPosition =
  /** The guest writes to it, and it lies on the recorded base. */
  | { readonly kind: 'top' }
  /** As `top`, and a merge into the recorded base runs or is ready. */
  | { readonly kind: 'merging' }
  /** Another snapshot lies on ours: that file. */
  | { readonly kind: 'middle'; readonly above: string }
  /** The VM is off, and its next start will use the overlay. */
  | { readonly kind: 'top while off' }
  /** The VM is off, and another snapshot lies on ours. */
  | { readonly kind: 'middle while off' }
  /** No VM uses it; the one it was made for is off and on the base, or is gone. */
  | { readonly kind: 'unused while off' }
  /** The QEMU process that was put onto it runs without it: it was merged, or never taken. */
  | { readonly kind: 'left' }
  /** Another QEMU process than the one that was put onto it runs without it. */
  | { readonly kind: 'bypassed' }
  /** The QEMU process has it open although libvirt does not know. */
  | { readonly kind: 'unknown to libvirt' }
  /** It has no base any more: somebody copied all of that into it, and it is the VM's own image now. */
  | { readonly kind: 'standalone' }
  /** It is in a chain, but not as we made it. */
  | { readonly kind: 'strange'; readonly why: string };

/** Whether that file exists, and is the one that we made. */
export type OverlayFile = 'missing' | 'empty' | 'ours' | 'foreign';

export function overlayFile(record: OverlayRecord): OverlayFile {
  const actual = identityOf(record.overlay);
  if (actual === undefined) return 'missing';
  const empty = fs.statSync(record.overlay).size === 0;
  if (record.file === undefined) return empty ? 'empty' : 'foreign';
  if (!isSameImage(actual, record.file)) return 'foreign';
  return empty ? 'empty' : 'ours';
}

function chainOf(disk: Disk | undefined): (string | undefined)[] {
  return disk?.path === undefined ? [] : [disk.path, ...disk.below];
}

function inLiveChain(record: OverlayRecord, disk: Disk, at: number): OverlayPosition {
  const chain = chainOf(disk);
  const [above, below] = [chain[at - 1], chain[at + 1]];
  if (below === undefined && disk.backing !== undefined && disk.mirror === undefined)
    return { kind: 'standalone' };
  if (below !== record.base.path) {
    const what = below ?? 'what is no file or device, or in a storage pool that is not active,';
    return { kind: 'strange', why: `it lies on ${what} instead of ${record.base.path}` };
  }
  if (at > 0 && above === undefined)
    return {
      kind: 'strange',
      why: 'what lies on it is no file or device, or in a storage pool that is not active',
    };
  if (disk.mirror === undefined) return above === undefined ? { kind: 'top' } : { kind: 'middle', above };
  const ours = at === 0 && disk.mirror.job === 'active-commit' && (disk.mirror.path ?? below) === below;
  return ours ? { kind: 'merging' } : { kind: 'strange', why: 'another block job works on the disk' };
}

function isSameProcess(a: ProcessIdentity, b: ProcessIdentity): boolean {
  return a.pid === b.pid && a.startTime === b.startTime && a.bootId === b.bootId;
}

function whileRunning(record: OverlayRecord, domain: DomainDescription): OverlayPosition {
  const disk = domain.disks.find(({ target }) => target === record.target);
  const at = chainOf(disk).indexOf(record.overlay);
  if (disk !== undefined && at >= 0) return inLiveChain(record, disk, at);
  const qemu = findQemu(domain);
  if (qemu !== undefined && record.file !== undefined && holdsOpen(qemu, record.file)) {
    return { kind: 'unknown to libvirt' };
  }
  return { kind: qemu !== undefined && isSameProcess(qemu, record.qemu) ? 'left' : 'bypassed' };
}

function whileOff(record: OverlayRecord, domain: DomainDescription): OverlayPosition {
  const disk = domain.disks.find(({ target }) => target === record.target);
  const at = chainOf(disk).indexOf(record.overlay);
  if (at === 0) return { kind: 'top while off' };
  return { kind: at > 0 ? 'middle while off' : 'unused while off' };
}

/** Looks where the overlay is now. Changes nothing. */
export async function findOverlay(virsh: Virsh, record: OverlayRecord): Promise<OverlayPosition> {
  const { uuid } = record.domain;
  if (!(await virsh.list()).some((domain) => domain.uuid === uuid)) return { kind: 'unused while off' };
  const domain = await loadDescription(virsh, uuid);
  return domain.active ? whileRunning(record, domain) : whileOff(record, await loadInactive(virsh, uuid));
}
