import type { Disk } from '../libvirt/domain.js';

/** Why this disk cannot be backed up whatever the snapshot kind; undefined if it can. A sentence about `disk vda`. */
export function diskRefusal(disk: Disk): string | undefined {
  if (disk.device === 'lun') return 'it is a SCSI device passed through to the guest';
  if (disk.type === 'network') return 'its image is on the network, not a file or block device of this host';
  if (disk.type === 'dir') return 'it is a directory shown as a disk';
  if (disk.type === 'other') return 'its source is of a type that is not known';
  if (disk.transient) return 'it is transient: its content is thrown away when the VM stops';
  if (disk.shareable) return 'it is shared with other VMs, which may write it at any time';
  if (disk.encrypted) return 'it is encrypted by QEMU, and its key is not at hand';
  if (disk.sliced) return 'it is a part (slice) of its image, which has more than the disk in it';
  if (disk.path === undefined && disk.type === 'volume') {
    return 'its storage volume cannot be found: is the pool active (virsh pool-list --all)?';
  }
  if (disk.path === undefined) return 'it has no image';
  return undefined;
}
