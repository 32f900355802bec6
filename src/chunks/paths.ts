import { CHUNKS_PER_DIRECTORY } from './geometry.js';

/** Hex digits of a chunk's file name and of its directory's. Part of the tree format. */
export const CHUNK_NAME_LENGTH = 8;
export const DIRECTORY_NAME_LENGTH = 6;

export const MANIFEST_NAME = 'manifest.json';
export const SUMS_SUFFIX = '.xxh64';
/** The xattr that carries a chunk's hash as 16 lower-case hex digits. */
export const HASH_XATTR = 'user.chunkmount.xxh64';

const HEX = /^[0-9a-f]+$/;

export function chunkName(index: number): string {
  return index.toString(16).padStart(CHUNK_NAME_LENGTH, '0');
}

export function directoryName(directory: number): string {
  return directory.toString(16).padStart(DIRECTORY_NAME_LENGTH, '0');
}

/** `0001a2/0001a2f3`: the chunk's path below its disk's directory. */
export function chunkPath(index: number): string {
  return `${directoryName(Math.floor(index / CHUNKS_PER_DIRECTORY))}/${chunkName(index)}`;
}

function parseHex(name: string, length: number): number {
  return name.length === length && HEX.test(name) ? Number.parseInt(name, 16) : -1;
}

/** The chunk's index, or -1 if this is not the canonical name of a chunk. */
export function parseChunkName(name: string): number {
  return parseHex(name, CHUNK_NAME_LENGTH);
}

/** The directory's number, or -1 if this is not the canonical name of a chunk directory. */
export function parseDirectoryName(name: string): number {
  return parseHex(name, DIRECTORY_NAME_LENGTH);
}

/** 16 lower-case hex digits of a 64-bit hash given as two 32-bit halves. */
export function formatHash(high: number, low: number): string {
  return (high >>> 0).toString(16).padStart(8, '0') + (low >>> 0).toString(16).padStart(8, '0');
}

/** Bytes in one line of a sums file of `target`: hash, two spaces, path, newline. */
export function sumsLineLength(target: string): number {
  return 16 + 2 + target.length + 1 + DIRECTORY_NAME_LENGTH + 1 + CHUNK_NAME_LENGTH + 1;
}

/** Line `index` of a sums file, as `xxhsum -c` reads it. */
export function sumsLine(target: string, index: number, hash: string): string {
  return `${hash}  ${target}/${chunkPath(index)}\n`;
}
