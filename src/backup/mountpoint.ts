import * as fs from 'node:fs';
import * as path from 'node:path';
import { ChunkmountError, failed, messageOf, systemCode } from '../errors.js';
import { makeDirectory } from '../host/durable.js';
import { mountAt } from '../host/mountinfo.js';
import type { Journal } from '../session/journal.js';
import type { UndoHandler } from '../session/undo.js';

/** Journal kind of a directory that was made to mount on. */
export const MOUNTPOINT = 'mountpoint';

/** Absolute path of the tree of `name`, free of symbolic links, as mountinfo shows it. Makes the directory above. */
export function mountpointFor(backupDirectory: string, name: string): string {
  try {
    makeDirectory(backupDirectory);
    return path.join(fs.realpathSync(backupDirectory), name);
  } catch (error) {
    throw failed(`the directory ${backupDirectory} cannot be used: ${messageOf(error)}`, {
      hint: 'give another one with --backupdir, or in CHUNKMOUNT_BACKUPDIR',
      cause: error,
    });
  }
}

function busy(mountpoint: string, why: string, hint: string): ChunkmountError {
  return new ChunkmountError('failed', `${mountpoint} ${why}`, { hint, details: { mountpoint } });
}

/** Throws unless nothing is at `mountpoint`, or an empty directory. */
export function checkMountpoint(mountpoint: string): void {
  const mounted = mountAt(mountpoint);
  if (mounted !== undefined) {
    throw busy(mountpoint, `is a mountpoint already (${mounted.type})`, `unmount it: umount ${mountpoint}`);
  }
  let entries: string[];
  try {
    entries = fs.readdirSync(mountpoint);
  } catch (error) {
    if (systemCode(error) === 'ENOENT') return;
    if (systemCode(error) === 'ENOTDIR') {
      throw busy(mountpoint, 'is a file', 'move it away, or give another --backupdir');
    }
    throw error;
  }
  if (entries.length > 0) {
    throw busy(mountpoint, 'is not empty', 'move what is in it away, or give another --backupdir');
  }
}

/**
 * Makes the directory to mount on. It is removed with the session, because an `rsync --delete` from an empty directory would erase
 * a backup.
 */
export function makeMountpoint(mountpoint: string, journal: Journal): void {
  const entry = journal.intend(MOUNTPOINT, { path: mountpoint });
  makeDirectory(mountpoint);
  journal.done(entry);
}

/** Removes the directory if it is empty and nothing is mounted there. */
const undoMountpoint: UndoHandler = async ({ data }) => {
  const mountpoint = String(data.path);
  try {
    fs.rmdirSync(mountpoint);
  } catch (error) {
    const code = systemCode(error);
    if (code === 'ENOENT') return;
    if (code === 'ENOTEMPTY' || code === 'ENOTDIR') return;
    throw failed(`the mountpoint ${mountpoint} cannot be removed: ${messageOf(error)}`, { cause: error });
  }
};

export const mountpointUndo = { [MOUNTPOINT]: undoMountpoint };
