import * as fs from 'node:fs';
import type { ChunkHasher } from '../chunks/chunk-hash.js';
import { CHUNKS_PER_DIRECTORY } from '../chunks/geometry.js';
import { formatHash } from '../chunks/paths.js';
import { messageOf, systemCode } from '../errors.js';
import {
  announceChange,
  BLOCK_ABSENT,
  BLOCK_LOADED,
  BLOCK_LOADING,
  DAMAGED_BLOCKS,
  GENERATION,
  ROWS_PER_BLOCK,
  type Rows,
  waitForChange,
} from './rows.js';

/**
 * The index file, version 1, all little-endian:
 *
 *        0  "CMINDEX\0"           8 bytes
 *        8  version               u32 = 1
 *       12  hash algorithm        u32 = 1, XXH64 with seed 0
 *       16  chunk size            u32, bytes
 *       20  mtime of the disk's directory   u32
 *       24  chunk count           u64
 *       32  disk size             u64, bytes
 *       40  checksum of bytes 0 to 39 and of the directory mtimes   two u32, the upper half first
 *       48  directory mtimes      u32 each
 *           checksums             two u32, the upper half first, a block of 4096 rows, over its hashes and then its mtimes
 *           hashes                two u32 a chunk, the upper half first
 *           mtimes                u32 a chunk, seconds; 0: nothing known
 *
 * Checksums are XXH64. Blocks are checked when their rows are first needed, so opening takes the same
 * time for a disk of any size.
 */
const MAGIC = 'CMINDEX\0';
const VERSION = 1;
const ALGORITHM_XXH64 = 1;
const HEADER_LENGTH = 48;
const CHECKED_LENGTH = 40;

export interface IndexHeader {
  readonly chunkSize: number;
  readonly chunkCount: number;
  readonly diskSize: number;
  readonly diskDirectoryMtime: number;
  /** One a chunk directory. */
  readonly directoryMtimes: Uint32Array;
}

export interface Sections {
  readonly sums: number;
  readonly hashes: number;
  readonly mtimes: number;
  readonly end: number;
}

export function sections(chunkCount: number): Sections {
  const sums = HEADER_LENGTH + Math.ceil(chunkCount / CHUNKS_PER_DIRECTORY) * 4;
  const hashes = sums + Math.ceil(chunkCount / ROWS_PER_BLOCK) * 8;
  const mtimes = hashes + chunkCount * 8;
  return { sums, hashes, mtimes, end: mtimes + chunkCount * 4 };
}

/** Reads exactly `length` bytes, or fewer at the end of the file. */
function readAt(fd: number, position: number, length: number): Buffer {
  const buffer = Buffer.alloc(length);
  let done = 0;
  while (done < length) {
    const got = fs.readSync(fd, buffer, done, length - done, position + done);
    if (got === 0) break;
    done += got;
  }
  return buffer.subarray(0, done);
}

/** An index file of a previous session. It stays readable when a new one takes its place. */
export class StoredIndex {
  readonly #sections: Sections;

  private constructor(
    readonly fd: number,
    readonly header: IndexHeader,
  ) {
    this.#sections = sections(header.chunkCount);
  }

  /**
   * Opens the file and checks its header. Answers undefined when there is none, and a sentence when it cannot be
   * used; then every chunk counts as changed, which is slow but never wrong.
   */
  static open(file: string, hasher: ChunkHasher): StoredIndex | string | undefined {
    let fd: number;
    try {
      fd = fs.openSync(file, 'r');
    } catch (error) {
      if (systemCode(error) === 'ENOENT') return undefined;
      return `the index ${file} cannot be opened (${systemCode(error) ?? 'unknown error'})`;
    }
    const header = tryReadHeader(fd, hasher);
    if (typeof header === 'string') {
      fs.closeSync(fd);
      return `the index ${file} ${header}`;
    }
    return new StoredIndex(fd, header);
  }

  /** For other threads, which share the descriptor. */
  static attach(fd: number, header: IndexHeader): StoredIndex {
    return new StoredIndex(fd, header);
  }

  /** Copies the stored rows of `block` into `rows`. False: they are damaged or unreadable, and nothing was copied. */
  loadBlock(block: number, rows: Rows, hasher: ChunkHasher): boolean {
    try {
      return this.#loadBlock(block, rows, hasher);
    } catch {
      return false;
    }
  }

  #loadBlock(block: number, rows: Rows, hasher: ChunkHasher): boolean {
    const first = block * ROWS_PER_BLOCK;
    const stored = Math.min(ROWS_PER_BLOCK, this.header.chunkCount - first);
    if (stored <= 0) return true;
    const found = this.#readBlock(block, hasher);
    if (found === undefined) return false;
    const { hashes, mtimes } = found;
    const count = Math.min(stored, rows.count - first);
    const target = new Uint8Array(rows.hashes.buffer, first * 8, count * 8);
    target.set(hashes.subarray(0, count * 8));
    new Uint8Array(rows.mtimes.buffer, first * 4, count * 4).set(mtimes.subarray(0, count * 4));
    return true;
  }

  /**
   * 16 hex digits that stand for all that the file says: the hash of its header and of the checksums of its blocks. Another
   * row anywhere gives another one.
   */
  fingerprint(hasher: ChunkHasher): string {
    const sum = sumOf([readAt(this.fd, 0, this.#sections.hashes)], hasher);
    return formatHash(sum.readUInt32LE(0), sum.readUInt32LE(4));
  }

  /** The stored rows of `block`, as they stand in the file; undefined if they are damaged, unreadable or not there. */
  readBlock(block: number, hasher: ChunkHasher): { hashes: Buffer; mtimes: Buffer } | undefined {
    try {
      return this.#readBlock(block, hasher);
    } catch {
      return undefined;
    }
  }

  #readBlock(block: number, hasher: ChunkHasher): { hashes: Buffer; mtimes: Buffer } | undefined {
    const first = block * ROWS_PER_BLOCK;
    const stored = Math.min(ROWS_PER_BLOCK, this.header.chunkCount - first);
    if (stored <= 0) return undefined;
    const hashes = readAt(this.fd, this.#sections.hashes + first * 8, stored * 8);
    const mtimes = readAt(this.fd, this.#sections.mtimes + first * 4, stored * 4);
    const expected = readAt(this.fd, this.#sections.sums + block * 8, 8);
    return blockSum(hashes, mtimes, hasher).equals(expected) ? { hashes, mtimes } : undefined;
  }

  close(): void {
    fs.closeSync(this.fd);
  }
}

function tryReadHeader(fd: number, hasher: ChunkHasher): IndexHeader | string {
  try {
    return readHeader(fd, hasher);
  } catch (error) {
    return `cannot be read (${systemCode(error) ?? messageOf(error)})`;
  }
}

function readHeader(fd: number, hasher: ChunkHasher): IndexHeader | string {
  const head = readAt(fd, 0, HEADER_LENGTH);
  if (head.length < HEADER_LENGTH || head.toString('latin1', 0, 8) !== MAGIC) return 'is not an index file';
  if (head.readUInt32LE(8) !== VERSION || head.readUInt32LE(12) !== ALGORITHM_XXH64)
    return 'is of another version';
  const chunkCount = Number(head.readBigUInt64LE(24));
  const diskSize = Number(head.readBigUInt64LE(32));
  const chunkSize = head.readUInt32LE(16);
  if (chunkSize === 0 || Math.ceil(diskSize / chunkSize) !== chunkCount) return 'is damaged';
  if (fs.fstatSync(fd).size !== sections(chunkCount).end) return 'is cut off';
  const directories = readAt(fd, HEADER_LENGTH, Math.ceil(chunkCount / CHUNKS_PER_DIRECTORY) * 4);
  const sum = sumOf([head.subarray(0, CHECKED_LENGTH), directories], hasher);
  if (!sum.equals(head.subarray(CHECKED_LENGTH))) return 'is damaged';
  return {
    chunkSize,
    chunkCount,
    diskSize,
    diskDirectoryMtime: head.readUInt32LE(20),
    directoryMtimes: new Uint32Array(Uint8Array.from(directories).buffer),
  };
}

/** XXH64 of all of them, one after the other, as it stands in the file. */
function sumOf(parts: readonly Uint8Array[], hasher: ChunkHasher): Buffer {
  const words = new Uint32Array(2);
  hasher.begin();
  for (const part of parts) hasher.update(part);
  hasher.end(words, 0);
  const sum = Buffer.alloc(8);
  sum.writeUInt32LE(words[0]!, 0);
  sum.writeUInt32LE(words[1]!, 4);
  return sum;
}

export function blockSum(hashes: Uint8Array, mtimes: Uint8Array, hasher: ChunkHasher): Buffer {
  return sumOf([hashes, mtimes], hasher);
}

export function encodeHeader(header: IndexHeader, hasher: ChunkHasher): Buffer {
  const head = Buffer.alloc(HEADER_LENGTH);
  head.write(MAGIC, 0, 'latin1');
  head.writeUInt32LE(VERSION, 8);
  head.writeUInt32LE(ALGORITHM_XXH64, 12);
  head.writeUInt32LE(header.chunkSize, 16);
  head.writeUInt32LE(header.diskDirectoryMtime, 20);
  head.writeBigUInt64LE(BigInt(header.chunkCount), 24);
  head.writeBigUInt64LE(BigInt(header.diskSize), 32);
  const directories = Buffer.from(
    Uint8Array.from(
      new Uint8Array(
        header.directoryMtimes.buffer,
        header.directoryMtimes.byteOffset,
        header.directoryMtimes.byteLength,
      ),
    ),
  );
  sumOf([head.subarray(0, CHECKED_LENGTH), directories], hasher).copy(head, CHECKED_LENGTH);
  return Buffer.concat([head, directories]);
}

/** Puts the previous session's rows of `block` into memory, once; other threads that need them wait. */
export function ensureBlock(
  rows: Rows,
  block: number,
  stored: StoredIndex | undefined,
  hasher: ChunkHasher,
): void {
  for (;;) {
    const generation = Atomics.load(rows.control, GENERATION);
    const state = Atomics.load(rows.blocks, block);
    if (state === BLOCK_LOADED) return;
    if (state === BLOCK_LOADING) {
      waitForChange(rows.control, generation);
    } else if (Atomics.compareExchange(rows.blocks, block, BLOCK_ABSENT, BLOCK_LOADING) === BLOCK_ABSENT) {
      if (stored !== undefined && !stored.loadBlock(block, rows, hasher))
        Atomics.add(rows.control, DAMAGED_BLOCKS, 1);
      Atomics.store(rows.blocks, block, BLOCK_LOADED);
      announceChange(rows.control);
    }
  }
}
