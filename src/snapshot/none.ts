import { failed } from '../errors.js';
import type { ImageReference } from '../image/image-reference.js';
import type { Disk } from '../libvirt/domain.js';
import { holdImages, holdUndo } from './hold.js';
import type { FrozenDisk, Snapshot, SnapshotProvider, SnapshotRequest } from './provider.js';

/** The image that a disk's XML names. The format is never guessed: libvirt takes a missing one for raw, and so do we. */
export function imageOf(disk: Disk): ImageReference {
  if (disk.path === undefined) throw failed(`disk ${disk.target} has no image`);
  return { path: disk.path, format: disk.format ?? 'raw' };
}

function frozen(disk: Disk): FrozenDisk {
  return { target: disk.target, image: imageOf(disk) };
}

async function freeze(request: SnapshotRequest): Promise<Snapshot> {
  const disks = request.disks.map(frozen);
  const backing = request.disks.flatMap((disk) => disk.backing ?? []);
  await holdImages({
    images: [...disks.map(({ image }) => image.path), ...backing.map(({ path }) => path)],
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
