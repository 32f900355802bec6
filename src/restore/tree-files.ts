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

/** Gets hold of what has a name without opening it: open(2). Node.js has no constant; the value is asm-generic/fcntl.h's. */
const O_PATH = 0o10000000;

/**
 * Opens a plain file of a tree for reading. Anything else is not opened, as that alone can do something: /dev/watchdog starts to
 * count, a tape rewinds, and who writes to a FIFO goes on. Throws system errors; EISDIR or ELOOP when a directory or link is in the
 * file's place, ENXIO when it is something else.
 */
export function openFile(directory: number, name: string): number {
  const found = fs.openSync(beneath(directory, name), O_PATH | O_NOFOLLOW);
  try {
    const stat = fs.fstatSync(found);
    // Not by its name again, which could be another file's by now.
    if (stat.isFile()) return fs.openSync(`/proc/self/fd/${found}`, O_RDONLY | O_NONBLOCK);
    throw Object.assign(new Error(`${name} is no plain file`), { code: codeOf(stat) });
  } finally {
    fs.closeSync(found);
  }
}

/** What open(2) would say of what is no plain file. */
function codeOf(stat: fs.Stats): string {
  if (stat.isSymbolicLink()) return 'ELOOP';
  return stat.isDirectory() ? 'EISDIR' : 'ENXIO';
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

/** A link, no directory, a directory; a device, FIFO or socket. */
const WRONG_TYPE: readonly unknown[] = ['ELOOP', 'ENOTDIR', 'EISDIR', 'ENXIO'];

/** Whether the error says that something else is where a file or directory of a tree should be. */
export function isWrongType(error: unknown): boolean {
  return WRONG_TYPE.includes(systemCode(error));
}
