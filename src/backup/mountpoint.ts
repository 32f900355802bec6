import * as fs from 'node:fs';
import * as path from 'node:path';
import { ChunkmountError, failed, messageOf, systemCode } from '../errors.js';
import { fsyncDirectory, makeDirectory } from '../host/durable.js';
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

/**
 * Throws unless nothing is at `mountpoint`, or an empty directory. A link to one is none: mount(8) would follow it to where nobody
 * looks for our mount.
 */
export function checkMountpoint(mountpoint: string): void {
  const mounted = mountAt(mountpoint);
  if (mounted !== undefined) {
    throw busy(mountpoint, `is a mountpoint already (${mounted.type})`, `unmount it: umount ${mountpoint}`);
  }
  const found = fs.lstatSync(mountpoint, { throwIfNoEntry: false });
  if (found === undefined) return;
  if (!found.isDirectory()) {
    if (!found.isSymbolicLink())
      throw busy(mountpoint, 'is a file', 'move it away, or give another --backupdir');
    throw busy(
      mountpoint,
      'is a symbolic link',
      'move it away, or give another --backupdir, which may be a link itself',
    );
  }
  if (fs.readdirSync(mountpoint).length > 0) {
    throw busy(mountpoint, 'is not empty', 'move what is in it away, or give another --backupdir');
  }
}

/**
 * Makes the directory to mount on, and throws if something else has come there since it was checked. It is removed with the session, because an `rsync --delete` from an empty directory would erase
 * a backup.
 */
export function makeMountpoint(mountpoint: string, journal: Journal): void {
  const entry = journal.intend(MOUNTPOINT, { path: mountpoint });
  try {
    fs.mkdirSync(mountpoint, { mode: 0o700 });
    fsyncDirectory(path.dirname(mountpoint));
  } catch (error) {
    if (systemCode(error) !== 'EEXIST') throw error;
    checkMountpoint(mountpoint);
  }
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
