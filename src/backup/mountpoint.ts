import * as fs from 'node:fs';
import * as path from 'node:path';
import { ChunkmountError, failed, messageOf, systemCode } from '../errors.js';
import { fsyncDirectory, makeDirectory } from '../host/durable.js';
import { listMounts, type MountEntry, mountAt } from '../host/mountinfo.js';
import type { Journal } from '../session/journal.js';
import type { UndoHandler } from '../session/undo.js';

/** Journal kind of a directory that was made to mount on. */
export const MOUNTPOINT = 'mountpoint';

/** What the mount of a session's tree calls itself in mountinfo. */
export function treeSource(name: string, session: string): string {
  return `chunkmount:${name}:${session}`;
}

/** Where trees of that name are mounted. */
export function treesOf(name: string): string[] {
  const isOfName = ({ source }: MountEntry) =>
    source === treeSource(name, source.slice(source.lastIndexOf(':') + 1));
  return listMounts()
    .filter(isOfName)
    .map(({ mountpoint }) => mountpoint);
}

/** Absolute path of the tree of `name`, free of symbolic links, as mountinfo shows it. Makes the directory above. */
export function mountpointFor(backupDirectory: string, name: string): string {
  try {
    makeDirectory(backupDirectory);
    return path.join(fs.realpathSync(backupDirectory), name);
  } catch (error) {
    throw unusable(backupDirectory, error);
  }
}

function unusable(backupDirectory: string, cause: unknown): ChunkmountError {
  return failed(`the directory ${backupDirectory} cannot be used: ${messageOf(cause)}`, {
    hint: 'give another one with --backupdir, or in CHUNKMOUNT_BACKUPDIR',
    cause,
  });
}

function busy(mountpoint: string, why: string, hint: string): ChunkmountError {
  return new ChunkmountError('failed', `${mountpoint} ${why}`, { hint, details: { mountpoint } });
}

/** Whether a tree of ours is mounted there: see `treeSource`. */
function isTree({ source }: MountEntry): boolean {
  return source.startsWith('chunkmount:');
}

/** To find out after the snapshot would be late. */
function checkWritable(directory: string): void {
  try {
    fs.accessSync(directory, fs.constants.W_OK);
  } catch (error) {
    throw unusable(directory, error);
  }
}

/**
 * Throws unless nothing is at `mountpoint` and it can be made, or there is an empty directory. A link to one is none: mount(8) would follow it to where nobody
 * looks for our mount.
 */
export function checkMountpoint(mountpoint: string): void {
  const mounted = mountAt(mountpoint);
  if (mounted !== undefined) {
    const hint = isTree(mounted)
      ? 'it is of a session that another state directory has: run chunkmount cleanup with the --statedir, or CHUNKMOUNT_STATEDIR, that it was begun with'
      : `unmount it: umount ${mountpoint}`;
    throw busy(mountpoint, `is a mountpoint already (${mounted.type})`, hint);
  }
  const found = fs.lstatSync(mountpoint, { throwIfNoEntry: false });
  if (found === undefined) {
    checkWritable(path.dirname(mountpoint));
    return;
  }
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
 * Makes the directory to mount on, and throws if something else has come there since it was checked. It is removed with the session,
 * because an `rsync --delete` from an empty directory would erase a backup.
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

/** Removes the directory if it is empty. Throws if something is mounted there, beneath which our tree may lie, dead by now. */
const undoMountpoint: UndoHandler = async ({ data }) => {
  const mountpoint = String(data.path);
  const mounted = mountAt(mountpoint);
  if (mounted !== undefined) {
    throw busy(
      mountpoint,
      `cannot be removed: ${mounted.source} (${mounted.type}) is mounted there`,
      `unmount it, and clean up again: umount ${mountpoint}`,
    );
  }
  // rmdir(2) says on a read-only file system that it is one, also of what was never there.
  if (fs.lstatSync(mountpoint, { throwIfNoEntry: false }) === undefined) return;
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
