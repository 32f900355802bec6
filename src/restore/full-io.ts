import * as fs from 'node:fs';

/**
 * Reads `length` bytes at `position` into the start of `buffer`; a single read may be short on network and FUSE file systems.
 * Returns how many there were before the end of the file.
 */
export function readFully(fd: number, buffer: Uint8Array, length: number, position: number): number {
  let done = 0;
  while (done < length) {
    const got = fs.readSync(fd, buffer, done, length - done, position + done);
    if (got === 0) break;
    done += got;
  }
  return done;
}

/** Writes the first `length` bytes of `data` at `position`. */
export function writeFullyAt(fd: number, data: Uint8Array, length: number, position: number): void {
  let done = 0;
  while (done < length) done += fs.writeSync(fd, data, done, length - done, position + done);
}
