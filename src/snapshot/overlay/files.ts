import * as fs from 'node:fs';
import * as path from 'node:path';
import { failed, messageOf, usage } from '../../errors.js';
import { fsyncDirectory } from '../../host/durable.js';
import type { Disk } from '../../libvirt/domain.js';
import { type ImageIdentity, identityOfDescriptor } from '../image-identity.js';

/** Space an overlay's file system must have left: below it a guest would soon be stopped by a failed write. */
const MIN_FREE_BYTES = 64 * 1024 * 1024;

/** The file that takes over from a disk's image: beside it, or in the directory given. */
export function overlayPath(
  disk: Disk,
  sessionId: string,
  attempt: number,
  directory: string | undefined,
): string {
  if (directory === undefined && fs.statSync(disk.path!).isBlockDevice()) {
    throw usage(
      `disk ${disk.target} is on the block device ${disk.path}, beside which no overlay can be made`,
      {
        hint: 'say where overlays are to go: --overlay-dir=DIR',
      },
    );
  }
  const suffix = attempt === 0 ? '' : `-${attempt}`;
  return path.join(directory ?? path.dirname(disk.path!), `${disk.target}.cm-${sessionId}${suffix}.qcow2`);
}

/** Throws unless the file system has room for an overlay to grow in. */
export function checkSpace(file: string): void {
  const directory = path.dirname(file);
  let free: number;
  try {
    const { bavail, bsize } = fs.statfsSync(directory);
    free = bavail * bsize;
  } catch (error) {
    throw failed(`no overlay can be made in ${directory}: ${messageOf(error)}`, {
      hint: 'make the directory, or name another one: --overlay-dir=DIR',
      cause: error,
    });
  }
  if (free >= MIN_FREE_BYTES) return;
  throw failed(`${directory} has only ${Math.floor(free / 2 ** 20)} MiB left for an overlay`, {
    hint: `make room there (${MIN_FREE_BYTES / 2 ** 20} MiB at least, and what the guest writes during the backup), or use --overlay-dir=DIR`,
    details: { directory, free },
  });
}

/**
 * Makes the overlay's file, empty, and returns its identity: libvirt takes an empty file for a new one and keeps it, so its
 * identity is known before the snapshot. Throws if there is such a file already.
 */
export function makeOverlayFile(file: string): ImageIdentity {
  let fd: number;
  try {
    fd = fs.openSync(file, 'wx', 0o600);
  } catch (error) {
    throw failed(`the overlay ${file} cannot be made: ${messageOf(error)}`, {
      hint: 'can the directory be written? --overlay-dir=DIR names another one',
      cause: error,
    });
  }
  try {
    fs.fsyncSync(fd);
    fsyncDirectory(path.dirname(file));
    return identityOfDescriptor(fd);
  } finally {
    fs.closeSync(fd);
  }
}
