import * as fs from 'node:fs';
import { systemCode } from '../errors.js';

const { O_DIRECTORY, O_NOFOLLOW, O_NONBLOCK, O_RDONLY } = fs.constants;

/**
 * A tree is foreign input: a symbolic link in it must never lead us out of it, not even one put there while we look. So every
 * step goes from an open directory to one name in it, as openat(2) does; Node lacks that, and /proc/self/fd stands in.
 */
function beneath(directory: number, name: string): string {
  return `/proc/self/fd/${directory}/${name}`;
}

/** Opens a file of a tree for reading. O_NONBLOCK: a FIFO in a file's place must not hang us. Throws system errors. */
export function openFile(directory: number, name: string): number {
  return fs.openSync(beneath(directory, name), O_RDONLY | O_NOFOLLOW | O_NONBLOCK);
}

/** Opens a directory of a tree. Throws system errors: ENOTDIR or ELOOP when something else is in its place. */
export function openDirectory(directory: number, name: string): number {
  return fs.openSync(beneath(directory, name), O_RDONLY | O_NOFOLLOW | O_DIRECTORY);
}

/** Opens the directory that `names` lead to, one below the other. Throws system errors, as openDirectory does. */
export function openBelow(directory: number, names: readonly string[]): number {
  let fd = directory;
  for (const name of names) {
    try {
      const next = openDirectory(fd, name);
      if (fd !== directory) fs.closeSync(fd);
      fd = next;
    } catch (error) {
      if (fd !== directory) fs.closeSync(fd);
      throw error;
    }
  }
  return fd;
}

/** Size and type of a file of a tree, without following a link or opening it. Throws system errors. */
export function statFile(directory: number, name: string): fs.Stats {
  return fs.lstatSync(beneath(directory, name));
}

/** The names in an open directory, in no order, without holding them all. */
export function* listNames(directory: number): Generator<string, void, undefined> {
  const handle = fs.opendirSync(`/proc/self/fd/${directory}`);
  try {
    for (let entry = handle.readSync(); entry !== null; entry = handle.readSync()) yield entry.name;
  } finally {
    handle.closeSync();
  }
}

/** A link, no directory, a directory; a socket when it is opened, a FIFO when it is read at a position. */
const WRONG_TYPE: readonly unknown[] = ['ELOOP', 'ENOTDIR', 'EISDIR', 'ENXIO', 'ESPIPE'];

/** Whether the error says that something else is where a file or directory of a tree should be. */
export function isWrongType(error: unknown): boolean {
  return WRONG_TYPE.includes(systemCode(error));
}
