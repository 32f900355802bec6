import { usage } from '../errors.js';

/** 256 KiB: small enough that a changed byte is cheap, large enough that 1 TiB is four million files. */
export const DEFAULT_CHUNK_SIZE = 256 * 1024;
export const MIN_CHUNK_SIZE = 4 * 1024;
export const MAX_CHUNK_SIZE = 16 * 1024 * 1024;

/** Chunk files a directory, in every layout. Part of the tree format: directory = index >> 8. */
export const CHUNKS_PER_DIRECTORY = 256;

/** Chunk numbers are 32 bits wide: eight hex digits. Part of the tree format. */
export const MAX_CHUNK_COUNT = 2 ** 32;

/** How a disk is cut: all sizes in bytes. */
export interface Geometry {
  readonly size: number;
  readonly chunkSize: number;
  readonly chunkCount: number;
}

export function isChunkSize(value: number): boolean {
  return (
    Number.isInteger(value) &&
    value >= MIN_CHUNK_SIZE &&
    value <= MAX_CHUNK_SIZE &&
    Number.isInteger(Math.log2(value))
  );
}

/** Throws a usage error for a chunk size that is none, or one that gives more than 2^32 chunks. */
export function geometry(size: number, chunkSize: number): Geometry {
  if (!isChunkSize(chunkSize)) {
    throw usage(`a chunk size of ${chunkSize} bytes is not possible`, {
      hint: 'give a power of two from 4K to 16M, for example --chunk-size=256K',
    });
  }
  const chunkCount = Math.ceil(size / chunkSize);
  if (chunkCount > MAX_CHUNK_COUNT) {
    throw usage(`a disk of ${size} bytes has too many chunks of ${chunkSize} bytes`, {
      hint: 'give a larger --chunk-size',
    });
  }
  return { size, chunkSize, chunkCount };
}

/** Bytes in chunk `index`; the last one may be short. */
export function chunkLength(disk: Geometry, index: number): number {
  return Math.min(disk.chunkSize, disk.size - index * disk.chunkSize);
}

/** Directories of a rank; those of rank 0 hold the chunks. See layout.ts. */
export function directoryCount(disk: Geometry, rank = 0): number {
  return Math.ceil(disk.chunkCount / CHUNKS_PER_DIRECTORY ** (rank + 1));
}

/** Chunk files in directory `directory`. */
export function chunksInDirectory(disk: Geometry, directory: number): number {
  return Math.min(CHUNKS_PER_DIRECTORY, disk.chunkCount - directory * CHUNKS_PER_DIRECTORY);
}
