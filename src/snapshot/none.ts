import { failed } from '../errors.js';
import type { ImageReference } from '../image/image-reference.js';
import type { Disk } from '../libvirt/domain.js';
import { holdImages, holdUndo } from './hold.js';
import type { FrozenDisk, Snapshot, SnapshotProvider, SnapshotRequest } from './provider.js';

/** The image that a disk's XML names. The format is never guessed: libvirt takes a missing one for raw, and so do we. */
export function imageOf(disk: Disk): ImageReference {
  if (disk.path === undefined) throw failed(`disk ${disk.target} has no image`);
  return { path: disk.path, format: disk.format ?? 'raw', below: disk.backing };
}

/** Everything that is read of the disks, what lies below their images, too, as far as it is a file or device. */
export function imagesBelow(disks: readonly Disk[]): string[] {
  const paths = disks.flatMap((disk) => [imageOf(disk).path, ...disk.below]);
  return paths.filter((path) => path !== undefined);
}

function frozen(disk: Disk): FrozenDisk {
  return { target: disk.target, image: imageOf(disk) };
}

async function freeze(request: SnapshotRequest): Promise<Snapshot> {
  const disks = request.disks.map(frozen);
  await holdImages({
    images: imagesBelow(request.disks),
    journal: request.journal,
    signal: request.signal,
  });
  return { time: new Date(), consistency: 'offline', disks };
}

/** The disks of a VM that is shut off, or read-only ones: nothing is made, but nobody can write them until the session ends. */
export const noneProvider: SnapshotProvider = {
  kind: 'none',
  async refusal({ domain }, disk) {
    return domain.active && !disk.readonly
      ? `disk ${disk.target}: ${domain.name} is ${domain.state}, and would write it meanwhile`
      : undefined;
  },
  freeze,
  undo: holdUndo,
};
