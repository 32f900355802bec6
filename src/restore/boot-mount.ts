import * as fs from 'node:fs';
import * as v from 'valibot';
import { failed, messageOf, systemCode } from '../errors.js';
import type { TransportKind } from '../fuse/transport.js';
import { mountAt } from '../host/mountinfo.js';
import { qemuGroup } from '../libvirt/qemu-user.js';
import type { Journal } from '../session/journal.js';
import type { UndoHandler } from '../session/undo.js';
import { type ImageMountRequest, mountImages } from './image-mount.js';
import { takeAway } from './image-unmount.js';

/** Journal kind of the directory that the images are mounted on. */
export const BOOT_DIRECTORY = 'boot-directory';
/** Journal kind of the mount of the images, and its daemon. */
export const BOOT_MOUNT = 'boot-mount';

const DirectoryData = v.object({ directory: v.string() });
const MountData = v.object({ mountpoint: v.string() });

export interface BootMountRequest {
  /** Absolute, as `mountpoint`. */
  readonly tree: string;
  readonly mountpoint: string;
  readonly log: string;
  readonly transport: TransportKind;
  readonly signal?: AbortSignal | undefined;
}

/** QEMU reads the images; nobody else does but root. */
function access(): Pick<ImageMountRequest, 'uid' | 'gid' | 'fileMode' | 'directoryMode' | 'allowOther'> {
  const root = process.getuid!() === 0;
  const group = root ? qemuGroup() : undefined;
  const gid = group ?? process.getgid!();
  return { uid: process.getuid!(), gid, fileMode: 0o440, directoryMode: 0o550, allowOther: root };
}

/** Shows the images of a tree at a directory that exists. */
export async function mountBootImages(request: BootMountRequest): Promise<void> {
  const { log: logFile, ...where } = request;
  await mountImages({ ...where, ...access(), verify: true, logFile });
}

/** Makes the directory, and shows the images there. */
export async function makeBootMount(journal: Journal, request: BootMountRequest): Promise<void> {
  const { mountpoint } = request;
  const directory = journal.intend(BOOT_DIRECTORY, { directory: mountpoint });
  fs.mkdirSync(mountpoint, { mode: 0o700 });
  journal.done(directory);
  const mount = journal.intend(BOOT_MOUNT, { mountpoint });
  await mountBootImages(request);
  journal.done(mount);
}

/** Whether the images can be read: a cached mount looks alive when its daemon is dead, but not to statfs. */
export function areImagesThere(mountpoint: string): boolean {
  if (mountAt(mountpoint) === undefined) return false;
  try {
    fs.statfsSync(mountpoint);
    return true;
  } catch (error) {
    if (systemCode(error) === 'ENOTCONN') return false;
    throw error;
  }
}

const undoMount: UndoHandler = async ({ data }) => takeAway(v.parse(MountData, data).mountpoint);

/** Removes the directory if it is empty: nothing can be lost with it, whoever made it. */
const undoDirectory: UndoHandler = async ({ data }, { reporter }) => {
  const { directory } = v.parse(DirectoryData, data);
  try {
    fs.rmdirSync(directory);
  } catch (error) {
    const code = systemCode(error);
    if (code === 'ENOENT') return;
    if (code === 'ENOTEMPTY' || code === 'ENOTDIR') {
      reporter.warn(
        `${directory} is not the empty directory that was made for the images, and is left alone`,
      );
      return;
    }
    throw failed(`the directory ${directory} cannot be removed: ${messageOf(error)}`, {
      hint: 'unmount what is mounted there (findmnt), then try again',
      cause: error,
    });
  }
};

export const bootMountUndo = { [BOOT_MOUNT]: undoMount, [BOOT_DIRECTORY]: undoDirectory };
