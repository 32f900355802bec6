import * as fs from 'node:fs';
import * as path from 'node:path';
import { failed, systemCode, usage } from '../errors.js';
import { deviceText } from '../host/device-number.js';

/** Sectors in /sys are of 512 bytes, whatever the device's own are: see Documentation/ABI/stable/sysfs-block. */
const SECTOR_BYTES = 512;

/** What is at the place that an image shall be restored to. `file` is absolute, and free of symbolic links if it exists. */
export type Target =
  | { readonly kind: 'nothing'; readonly file: string }
  | {
      readonly kind: 'file';
      readonly file: string;
      readonly size: number;
      /** As stat(2) has them, of the file that was there. */
      readonly device: number;
      readonly inode: number;
    }
  | { readonly kind: 'device'; readonly file: string; readonly size: number };

/** Size in bytes of a block device. */
function deviceSize(file: string, device: bigint): number {
  try {
    return Number(fs.readFileSync(`/sys/dev/block/${deviceText(device)}/size`, 'latin1')) * SECTOR_BYTES;
  } catch (error) {
    throw failed(`the size of ${file} cannot be found out`, { hint: 'is /sys mounted?', cause: error });
  }
}

function realPath(file: string): string | undefined {
  try {
    return fs.realpathSync(file);
  } catch (error) {
    if (['ENOENT', 'ENOTDIR'].includes(systemCode(error) ?? '')) return undefined;
    throw failed(`${file} cannot be used: ${systemCode(error) ?? error}`, { cause: error });
  }
}

/** Looks at the place. Throws a usage error if an image cannot go there: no such directory, a directory, a pipe, …. */
export function examineTarget(given: string): Target {
  const file = realPath(given);
  if (file === undefined) return newTarget(given);
  // Of a pipe, as behind /dev/stdout, there is a name and no file.
  const stat = fs.statSync(file, { bigint: true, throwIfNoEntry: false });
  if (stat?.isBlockDevice() === true) return { kind: 'device', file, size: deviceSize(file, stat.rdev) };
  if (stat?.isFile() === true)
    return {
      kind: 'file',
      file,
      size: Number(stat.size),
      device: Number(stat.dev),
      inode: Number(stat.ino),
    };
  throw usage(`${given} is no file and no block device`, {
    hint: 'to write into a pipe, use --to=- and redirect the output',
  });
}

function newTarget(given: string): Target {
  const directory = realPath(path.dirname(path.resolve(given)));
  if (directory === undefined || !fs.statSync(directory).isDirectory()) {
    throw usage(`${path.dirname(given)} is no directory`, { hint: 'make it first' });
  }
  if (fs.lstatSync(given, { throwIfNoEntry: false }) !== undefined) {
    throw usage(`${given} is a symbolic link to nothing`, {
      hint: 'remove it, or give the path it should lead to',
    });
  }
  return { kind: 'nothing', file: path.join(directory, path.basename(given)) };
}
