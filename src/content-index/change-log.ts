import * as fs from 'node:fs';
import type { ChunkHasher } from '../chunks/chunk-hash.js';
import { writeFully } from '../host/durable.js';
import { ensureBlock, type StoredIndex } from './index-file.js';
import { ROWS_PER_BLOCK, type Rows } from './rows.js';

/*
 * The change log of a disk: chunks that got a later time than the index knows of yet. A session that dies before it has saved its index
 * may have shown them; and a chunk that is as before it in the next session must not get its time of before again.
 *
 * 8 bytes an entry, little-endian: chunk u32, mtime u32 (seconds since the epoch). Threads append to the same file. An entry says nothing
 * any more once the row in the index has that time, or a later one.
 */
const ENTRY_LENGTH = 8;
const ENTRIES_AT_ONCE = 128 * 1024;

/** Opens the log of a disk for appending, for all threads. Throws system errors. */
export function openChangeLog(file: string): number {
  return fs.openSync(file, 'a', 0o600);
}

/** What one thread has to say to the log that is open as `fd`. Without one, nothing is kept. */
export class ChangeLog {
  #entries: number[] = [];

  constructor(private readonly fd: number | undefined) {}

  /** To be written before anybody sees the time. */
  add(chunk: number, mtime: number): void {
    if (this.fd !== undefined) this.#entries.push(chunk, mtime);
  }

  /** Writes what was added. In the hands of the kernel it outlives the process; `syncChangeLog` has it outlive the host. */
  write(): void {
    if (this.fd === undefined || this.#entries.length === 0) return;
    const bytes = Buffer.from(Uint32Array.from(this.#entries).buffer);
    this.#entries = [];
    try {
      writeFully(this.fd, bytes);
    } catch {
      // The backup goes on: where there is no room for this there is none for the index either, and then the session's end fails.
    }
  }
}

/** Makes what was written to the log durable, in the background, if it is longer than `synced` bytes. Returns its length. */
export function syncChangeLog(fd: number, synced: number): number {
  const { size } = fs.fstatSync(fd);
  if (size !== synced) fs.fdatasync(fd, () => {});
  return size;
}

/**
 * Forgets the rows of `stored` whose chunks may have been seen with a later time than the row's: they count as chunks of which nothing is
 * known. Before any thread looks at the rows. Returns how many. Throws system errors.
 */
export function forgetUnsaved(
  file: string,
  rows: Rows,
  stored: StoredIndex | undefined,
  hasher: ChunkHasher,
): number {
  let forgotten = 0;
  forEachEntry(file, (chunk, mtime) => {
    if (chunk >= rows.count) return;
    ensureBlock(rows, Math.floor(chunk / ROWS_PER_BLOCK), stored, hasher);
    const known = rows.mtimes[chunk]!;
    if (known === 0 || known >= mtime) return;
    rows.mtimes[chunk] = 0;
    forgotten++;
  });
  return forgotten;
}

function forEachEntry(file: string, visit: (chunk: number, mtime: number) => void): void {
  const fd = fs.openSync(file, 'r');
  try {
    const buffer = Buffer.alloc(Math.min(ENTRIES_AT_ONCE * ENTRY_LENGTH, fs.fstatSync(fd).size));
    for (let position = 0; ; ) {
      const got = fs.readSync(fd, buffer, 0, buffer.length, position);
      // The last entry may be cut off.
      const whole = got - (got % ENTRY_LENGTH);
      if (whole === 0) return;
      for (let at = 0; at < whole; at += ENTRY_LENGTH)
        visit(buffer.readUInt32LE(at), buffer.readUInt32LE(at + 4));
      position += whole;
    }
  } finally {
    fs.closeSync(fd);
  }
}
