import { randomBytes } from 'node:crypto';
import { fileURLToPath } from 'node:url';
import type { TransportKind } from '../fuse/transport.js';
import type { MountEntry } from '../host/mountinfo.js';
import { scriptUrl } from '../host/program-files.js';
import type { PlainShape } from './plain-tree.js';

/** What the daemon gets, as its argument. */
export interface ImageMountConfig {
  /** Absolute. */
  readonly tree: string;
  /** The tree is a copy of a chunkfs mount. */
  readonly plain?: PlainShape | undefined;
  readonly mountpoint: string;
  readonly source: string;
  readonly transport: TransportKind;
  readonly verify: boolean;
  readonly allowOther: boolean;
  readonly uid: number;
  readonly gid: number;
  readonly fileMode: number;
  readonly directoryMode: number;
}

export const IMAGE_DAEMON_SCRIPT = fileURLToPath(scriptUrl('restore/image-daemon.js'));

/** Begins the source in mountinfo of every mount of images, and tells it from others. */
const SOURCE_PREFIX = 'chunkmount-images:';

/** How a mount of a tree of that name calls itself in mountinfo, as no other does. */
export function imageMountSource(name: string): string {
  return `${SOURCE_PREFIX}${name}:${randomBytes(4).toString('hex')}`;
}

export function isImageMount({ source }: MountEntry): boolean {
  return source.startsWith(SOURCE_PREFIX);
}

/** Where the image of a disk is below a mountpoint. */
export function imagePath(mountpoint: string, target: string): string {
  return `${mountpoint}/${target}.img`;
}
