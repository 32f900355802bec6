import * as fs from 'node:fs';
import * as path from 'node:path';
import { systemCode } from '../errors.js';

export function fsyncDirectory(directory: string): void {
  const fd = fs.openSync(directory, fs.constants.O_RDONLY | fs.constants.O_DIRECTORY);
  try {
    fs.fsyncSync(fd);
  } finally {
    fs.closeSync(fd);
  }
}

/** Writes all of `data` at the descriptor's current position; a single write may be short. */
export function writeFully(fd: number, data: Uint8Array): void {
  let done = 0;
  while (done < data.byteLength) done += fs.writeSync(fd, data, done, data.byteLength - done);
}

/** Adds the file's name to an error of the system about a descriptor, in which Node.js names none. Returns the error. */
export function nameFile(error: unknown, file: string): unknown {
  if (error instanceof Error && systemCode(error) !== undefined && !('path' in error))
    error.message += ` '${file}'`;
  return error;
}

/**
 * Replaces `file` so that a crash at any moment leaves either the old content or the new: temporary file, fsync, rename,
 * fsync of the directory. `mode` is the mode of the new file. A function as content may stream; a string or buffer is written whole.
 * On error the temporary file is removed and the error passed on. `durable: false`: other processes see either content as well, but
 * after a crash of the host there may be neither.
 */
export function replaceFile(
  file: string,
  content: string | Uint8Array | ((fd: number) => void),
  { mode = 0o600, durable = true }: { readonly mode?: number; readonly durable?: boolean } = {},
): void {
  const directory = path.dirname(file);
  const temporary = path.join(directory, `.${path.basename(file)}.${process.pid}.tmp`);
  const fd = fs.openSync(temporary, 'w', mode);
  try {
    try {
      if (typeof content === 'function') content(fd);
      else writeFully(fd, typeof content === 'string' ? Buffer.from(content) : content);
      if (durable) fs.fsyncSync(fd);
    } finally {
      fs.closeSync(fd);
    }
    fs.renameSync(temporary, file);
  } catch (error) {
    fs.rmSync(temporary, { force: true });
    throw nameFile(error, file);
  }
  if (durable) fsyncDirectory(directory);
}

const TEMPORARY = /^\..+\.[0-9]+\.tmp$/;

/** Removes what killed processes left of `replaceFile` in a directory in which nobody is at it now. */
export function removeUnfinished(directory: string): void {
  for (const name of fs.readdirSync(directory))
    if (TEMPORARY.test(name)) fs.rmSync(path.join(directory, name), { force: true });
}

/**
 * Gives a file that is to replace another one its owner and mode. Only root can give a file away; for anybody else it stays theirs,
 * which is what cp does. Throws system errors.
 */
export function inheritAccess(file: string, replaced: fs.Stats): void {
  if (process.geteuid?.() === 0) fs.chownSync(file, replaced.uid, replaced.gid);
  fs.chmodSync(file, replaced.mode & 0o777);
}

/** Whether a write failed because there is no room: the file system is full, or the user's quota used up. */
export function isDiskFull(error: unknown): boolean {
  return ['ENOSPC', 'EDQUOT'].includes(systemCode(error) ?? '');
}

/**
 * Makes `directory` and its parents (mode 0700 for each one made) durable. Not with mkdirSync's `recursive`: where mkdir(2) says ENOENT of
 * a directory whose parent is there, as below an automounter or in /proc, Node.js 20 goes round in circles for ever.
 */
export function makeDirectory(directory: string, mode = 0o700): void {
  const given = path.resolve(directory);
  const missing = [given];
  for (let above = path.dirname(given); !fs.existsSync(above); above = path.dirname(above))
    missing.push(above);
  for (const one of missing.reverse()) {
    try {
      fs.mkdirSync(one, mode);
    } catch (error) {
      if (fs.statSync(one, { throwIfNoEntry: false })?.isDirectory() === true) continue;
      throw error;
    }
    fsyncDirectory(path.dirname(one));
  }
}

/** The file's content, or undefined if there is no such file. Other errors are passed on. */
export function readIfExists(file: string): string | undefined {
  try {
    return fs.readFileSync(file, 'utf8');
  } catch (error) {
    if (systemCode(error) === 'ENOENT') return undefined;
    throw error;
  }
}
