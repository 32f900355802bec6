import * as fs from 'node:fs';
import * as os from 'node:os';
import * as path from 'node:path';
import { failed, messageOf } from '../errors.js';
import { writeFully } from '../host/durable.js';

/** In memory, so that a full disk does not keep a VM from getting its definition back. */
const OTHERWISE = ['/dev/shm', '/run'];

/**
 * Opens a file that holds `text` and has no name any more, so that nothing is left of it whatever happens. It lies where temporary files
 * do, or, if none can be had there, in memory.
 */
export function anonymousFile(text: string): number {
  const place = os.tmpdir();
  const errors: unknown[] = [];
  for (const parent of [place, ...OTHERWISE]) {
    try {
      return anonymousFileIn(parent, text);
    } catch (error) {
      errors.push(error);
    }
  }
  throw failed(`no temporary file can be made in ${place}: ${messageOf(errors[0])}`, {
    hint: 'make room there, or name another directory in TMPDIR',
    cause: errors[0],
  });
}

function anonymousFileIn(parent: string, text: string): number {
  const directory = fs.mkdtempSync(path.join(parent, 'chunkmount-'));
  let fd: number | undefined;
  try {
    fd = fs.openSync(path.join(directory, 'input'), 'wx+', 0o600);
    writeFully(fd, Buffer.from(text));
    return fd;
  } catch (error) {
    if (fd !== undefined) fs.closeSync(fd);
    throw error;
  } finally {
    fs.rmSync(directory, { recursive: true });
  }
}
