import * as fs from 'node:fs';
import * as v from 'valibot';
import { failed, messageOf, systemCode } from '../errors.js';
import { deviceText } from '../host/device-number.js';
import { readIfExists } from '../host/durable.js';
import { bootId } from '../host/process-identity.js';

/** Names one file so that another one put in its place is told apart, across reboots too. */
export const imageIdentity = v.object({
  device: v.string(),
  inode: v.string(),
  /** Nanoseconds since 1970; `0` where the file system does not know. */
  birth: v.string(),
  /** Device numbers are given out anew at each boot. */
  bootId: v.string(),
});

export type ImageIdentity = v.InferOutput<typeof imageIdentity>;

function identityFrom(stat: fs.BigIntStats): ImageIdentity {
  return {
    device: String(stat.isBlockDevice() ? stat.rdev : stat.dev),
    // A device node is made anew at each boot: its inode says nothing.
    inode: stat.isBlockDevice() ? 'block' : String(stat.ino),
    birth: stat.isBlockDevice() ? '0' : String(stat.birthtimeNs),
    bootId: bootId(),
  };
}

export function identityOfDescriptor(fd: number): ImageIdentity {
  return identityFrom(fs.fstatSync(fd, { bigint: true }));
}

/** The file's identity, undefined if there is none of that name. */
export function identityOf(file: string): ImageIdentity | undefined {
  try {
    return identityFrom(fs.statSync(file, { bigint: true }));
  } catch (error) {
    if (systemCode(error) === 'ENOENT') return undefined;
    throw error;
  }
}

/** Where a file system knows when a file was made, its device says nothing more: storage that is attached anew gets another number. */
export function isSameImage(a: ImageIdentity, b: ImageIdentity): boolean {
  const sameDevice = a.birth !== '0' || a.bootId !== b.bootId || a.device === b.device;
  return a.inode === b.inode && a.birth === b.birth && sameDevice;
}

/** Sectors written to a block device since it appeared: field 7 of Documentation/block/stat.rst. */
function sectorsWritten(rdev: bigint): string | undefined {
  const stat = readIfExists(`/sys/dev/block/${deviceText(rdev)}/stat`);
  return stat?.trim().split(/\s+/)[6];
}

/**
 * A mark that is another one once the image was written: a file's time of last write, a block device's count of sectors.
 * The latter begins anew with each boot.
 */
export function writeMark(file: string): string | undefined {
  const stat = fs.statSync(file, { bigint: true });
  if (!stat.isBlockDevice()) return `time ${stat.mtimeNs}`;
  const sectors = sectorsWritten(stat.rdev);
  return sectors === undefined ? undefined : `boot ${bootId()} sectors ${sectors}`;
}

/**
 * The same, of an image that is brought to the disk first: a power failure may else take back its time of last write, which a file
 * system writes seconds later, or hours, but not what was written.
 */
export async function durableMark(file: string): Promise<string | undefined> {
  try {
    const handle = await fs.promises.open(file, 'r');
    try {
      await handle.sync();
    } finally {
      await handle.close();
    }
  } catch (error) {
    throw failed(`${file} cannot be brought to the disk: ${messageOf(error)}`, {
      hint: 'is its storage all right? see the kernel log',
      cause: error,
    });
  }
  return writeMark(file);
}

/**
 * Whether an image was written between two marks; undefined where that cannot be told. `boot`: the one in which the first was taken,
 * if it is known. A file's time of last write that is older than it was then was lost in a power failure since, or it was set back,
 * with another content or without.
 */
export function wasWritten(
  before: string | undefined,
  after: string | undefined,
  boot: string | undefined,
): boolean | undefined {
  if (before === undefined || after === undefined) return undefined;
  if (before === after) return false;
  const [kind, then = ''] = before.split(' ');
  const [kindNow, now = ''] = after.split(' ');
  if (kind !== kindNow) return true;
  if (kind === 'boot') return then === now ? true : undefined;
  return BigInt(now) < BigInt(then) && boot !== bootId() ? undefined : true;
}
