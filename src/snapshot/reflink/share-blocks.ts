import * as fs from 'node:fs';
import * as path from 'node:path';
import { CommandError } from '../../host/command-error.js';
import { run } from '../../host/exec.js';

/** f_type of statfs(2): the file systems whose clones are tried here. */
const XFS = 0x58465342;
const BTRFS = 0x9123683e;

/** What the two files are called for cp, and in its messages. */
export const SOURCE_NAME = '/proc/self/fd/3';
export const TARGET_NAME = '/proc/self/fd/4';

/** As much as an overlay needs: a guest that overwrites what a clone shares takes new blocks. */
export const MIN_FREE_BYTES = 64 * 2 ** 20;

/** A file without a name, which is gone when it is closed: open(2). */
const O_TMPFILE = 0o20000000 | fs.constants.O_DIRECTORY;

const TRIAL_BYTES = 64 * 1024;
const CLONE_TIMEOUT_MS = 120_000;

/** Whether a file is on a file system whose files can share blocks. */
export function sharesBlocks(file: string): boolean {
  return [XFS, BTRFS].includes(fs.statfsSync(file).type);
}

export function isBtrfs(directory: string): boolean {
  return fs.statfsSync(directory).type === BTRFS;
}

/** Bytes left in the file system of a directory. */
export function freeBytes(directory: string): number {
  const { bavail, bsize } = fs.statfsSync(directory);
  return bavail * bsize;
}

/**
 * Makes an empty file share all blocks of another one of the same file system, at one moment: FICLONE, which ioctl_ficlonerange(2)
 * promises to be atomic for writers. Throws CommandError where that is not possible.
 */
export async function shareBlocks(
  source: number,
  target: number,
  signal?: AbortSignal | undefined,
): Promise<void> {
  // By descriptor, so that no name can be exchanged in between.
  await run('cp', ['--reflink=always', '--', SOURCE_NAME, TARGET_NAME], {
    descriptors: [source, target],
    timeoutMs: CLONE_TIMEOUT_MS,
    signal,
  });
}

function nameless(directory: string): number {
  return fs.openSync(directory, O_TMPFILE | fs.constants.O_RDWR, 0o600);
}

/** An XFS can have been made without reference counts. */
async function trialRefusal(directory: string, signal?: AbortSignal): Promise<string | undefined> {
  const source = nameless(directory);
  try {
    const target = nameless(directory);
    try {
      fs.writeSync(source, Buffer.alloc(TRIAL_BYTES, 1));
      await shareBlocks(source, target, signal);
      return undefined;
    } catch (error) {
      if (!(error instanceof CommandError) || error.exitCode === undefined) throw error;
      return `the file system of ${directory} cannot share blocks between files (an XFS has to be made with reflink=1)`;
    } finally {
      fs.closeSync(target);
    }
  } finally {
    fs.closeSync(source);
  }
}

/** Why no clone of an image can be made beside it; undefined if one can. Leaves nothing behind. */
export async function cloneRefusal(image: string, signal?: AbortSignal): Promise<string | undefined> {
  const directory = path.dirname(image);
  const found = fs.statSync(image, { throwIfNoEntry: false });
  if (found === undefined) return `its image ${image} is not on this host`;
  if (!found.isFile()) return `${image} is no file but a device`;
  if (found.dev !== fs.statSync(directory).dev)
    return `${image} is on another file system or subvolume than its directory, where the clone would be`;
  if (!sharesBlocks(directory))
    return `${image} is not on a file system whose files can share blocks (XFS, Btrfs)`;
  const free = freeBytes(directory);
  if (free < MIN_FREE_BYTES) {
    const mib = (bytes: number) => Math.floor(bytes / 2 ** 20);
    return `${directory} has only ${mib(free)} MiB left, and needs ${mib(MIN_FREE_BYTES)} MiB and what the guest overwrites during the backup`;
  }
  return trialRefusal(directory, signal);
}
