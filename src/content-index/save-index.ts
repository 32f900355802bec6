import * as fs from 'node:fs';
import type { ChunkHasher } from '../chunks/chunk-hash.js';
import { replaceFile, writeFully } from '../host/durable.js';
import {
  blockSum,
  encodeHeader,
  ensureBlock,
  type IndexHeader,
  type StoredIndex,
  sections,
} from './index-file.js';
import { ROWS_PER_BLOCK, type Rows } from './rows.js';

function writeAt(fd: number, data: Uint8Array, position: number): void {
  let done = 0;
  while (done < data.byteLength)
    done += fs.writeSync(fd, data, done, data.byteLength - done, position + done);
}

/**
 * A private copy of one block. Other threads may be writing rows: they write the mtime before the hash, and here the
 * hashes are copied before the mtimes, so that a row caught half-way has its old hash with a new mtime (and
 * counts as changed once more) and never a new hash with its old mtime (which would hide a change).
 */
class BlockCopy {
  readonly #hashes = new Uint8Array(ROWS_PER_BLOCK * 8);
  readonly #mtimes = new Uint8Array(ROWS_PER_BLOCK * 4);

  /** Valid until the next one is taken: the blocks of a large disk would be gigabytes for the garbage collector. */
  take(rows: Rows, block: number): { hashes: Uint8Array; mtimes: Uint8Array } {
    const first = block * ROWS_PER_BLOCK;
    const count = Math.min(ROWS_PER_BLOCK, rows.count - first);
    this.#hashes.set(new Uint8Array(rows.hashes.buffer, first * 8, count * 8));
    this.#mtimes.set(new Uint8Array(rows.mtimes.buffer, first * 4, count * 4));
    return { hashes: this.#hashes.subarray(0, count * 8), mtimes: this.#mtimes.subarray(0, count * 4) };
  }
}

/**
 * Writes the index durably (see `replaceFile`). Blocks that no chunk of this session needed are carried over from
 * `previous`.
 */
export function saveIndex(
  file: string,
  header: IndexHeader,
  rows: Rows,
  previous: StoredIndex | undefined,
  hasher: ChunkHasher,
): void {
  const layout = sections(header.chunkCount);
  replaceFile(file, (fd) => {
    writeFully(fd, encodeHeader(header, hasher));
    const sums = Buffer.alloc(layout.hashes - layout.sums);
    const copy = new BlockCopy();
    for (let block = 0; block < rows.blocks.length && block * ROWS_PER_BLOCK < rows.count; block++) {
      ensureBlock(rows, block, previous, hasher);
      const { hashes, mtimes } = copy.take(rows, block);
      blockSum(hashes, mtimes, hasher).copy(sums, block * 8);
      writeAt(fd, hashes, layout.hashes + block * ROWS_PER_BLOCK * 8);
      writeAt(fd, mtimes, layout.mtimes + block * ROWS_PER_BLOCK * 4);
    }
    writeAt(fd, sums, layout.sums);
  });
}
