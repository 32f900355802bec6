import * as fs from 'node:fs';
import * as path from 'node:path';
import { type ChunkmountError, failed } from '../../errors.js';
import { readIfExists } from '../../host/durable.js';
import type { ServeOptions } from '../transport.js';

const DEVICE = '/dev/fuse';
const CONFIGURATION = '/etc/fuse.conf';
/** Where fusermount looks whose mount it is to unmount. */
const MOUNT_TABLE = '/etc/mtab';

function isAccessible(file: string, mode: number): boolean {
  try {
    fs.accessSync(file, mode);
    return true;
  } catch {
    return false;
  }
}

function isOnPath(program: string): boolean {
  const directories = (process.env.PATH ?? '').split(':').filter(Boolean);
  return directories.some((directory) => isAccessible(path.join(directory, program), fs.constants.X_OK));
}

/** fusermount lets an ordinary user give allow_other only if the administrator wrote this line. */
function othersAreAllowed(): boolean {
  const lines = (readIfExists(CONFIGURATION) ?? '').split('\n');
  return lines.some((line) => line.trim() === 'user_allow_other');
}

/** What certainly keeps this user from mounting; undefined if nothing of that kind can be seen. */
export function mountObstacle({ mountpoint, allowOther }: ServeOptions): ChunkmountError | undefined {
  const isRoot = process.geteuid?.() === 0;
  if (!fs.existsSync(DEVICE))
    return failed(`${DEVICE} does not exist`, { hint: 'load the module: modprobe fuse' });
  if (!isAccessible(DEVICE, fs.constants.R_OK | fs.constants.W_OK)) {
    return failed(`${DEVICE} is closed to this user`, {
      hint: `let users mount: chmod 0666 ${DEVICE}, as Debian's udev rules do; or run as root`,
    });
  }
  if (isRoot) return undefined;
  if (!isOnPath('fusermount')) {
    return failed('fusermount is not installed', { hint: 'install it: apt-get install fuse3' });
  }
  if (!isAccessible(MOUNT_TABLE, fs.constants.R_OK)) {
    return failed(`${MOUNT_TABLE} is not there, without which fusermount cannot unmount`, {
      hint: `make it, as systemd does: ln -s ../proc/self/mounts ${MOUNT_TABLE}`,
    });
  }
  if (allowOther && !othersAreAllowed()) {
    return failed(`--allow-other is forbidden to ordinary users in ${CONFIGURATION}`, {
      hint: `add the line user_allow_other to ${CONFIGURATION}, or leave out --allow-other`,
    });
  }
  if (!isAccessible(mountpoint, fs.constants.W_OK)) {
    return failed(`${mountpoint} is not writable, so fusermount does not let this user mount there`, {
      hint: 'give a directory of your own with --backupdir',
    });
  }
  return undefined;
}
