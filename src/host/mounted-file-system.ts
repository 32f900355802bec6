import * as fs from 'node:fs';
import * as path from 'node:path';
import { failed } from '../errors.js';
import { deviceText } from './device-number.js';
import { listMounts } from './mountinfo.js';

/** File systems that have a directory in /sys as long as they are mounted: Documentation/ABI/testing/sysfs-fs-ext4, -xfs and -btrfs. */
export type FileSystemDriver = 'ext4' | 'xfs' | 'btrfs';

/** A btrfs has a device number of its own for each subvolume, and is found by the mount that the file is on. */
function btrfsDirectory(file: string): string {
  const real = fs.realpathSync(file);
  const above = listMounts().filter(({ mountpoint }) => !path.relative(mountpoint, real).startsWith('..'));
  const longest = Math.max(...above.map(({ mountpoint }) => mountpoint.length));
  const mount = above.findLast(({ mountpoint }) => mountpoint.length === longest);
  if (mount?.type !== 'btrfs') throw failed(`the btrfs that ${file} is on is not found`);
  const device = path.basename(fs.realpathSync(mount.source));
  const all = fs.readdirSync('/sys/fs/btrfs').map((name) => `/sys/fs/btrfs/${name}`);
  const found = all.find((directory) => fs.existsSync(`${directory}/devices/${device}`));
  if (found === undefined) throw failed(`${device}, which ${file} is on, is not found in /sys/fs/btrfs`);
  return found;
}

function sysDirectory(file: string, driver: FileSystemDriver): string {
  if (driver === 'btrfs') return btrfsDirectory(file);
  const device = deviceText(fs.statSync(file, { bigint: true }).dev);
  return `/sys/fs/${driver}/${path.basename(fs.realpathSync(`/sys/dev/block/${device}`))}`;
}

/**
 * Stands for the time from when the file system that `file` is on was mounted until nobody has it mounted any more, wherever: the inode
 * number of its directory in /sys. These are not given out again before the next boot (kernfs in the kernel's fs/kernfs/dir.c counts on).
 * Throws if it cannot be told.
 */
export function mountingOf(file: string, driver: FileSystemDriver): string {
  return `${driver} ${fs.statSync(sysDirectory(file, driver), { bigint: true }).ino}`;
}
