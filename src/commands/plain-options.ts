import type { Command } from 'commander';
import { DEFAULT_CHUNK_SIZE } from '../chunks/geometry.js';
import { usage } from '../errors.js';
import type { PlainShape } from '../restore/plain-tree.js';
import { parseChunkSize, parseSize } from './parse.js';

/** The options as commander has them. */
export interface PlainOptions {
  readonly size?: string;
  readonly chunkSize?: string;
}

export const PLAIN_HELP = `
With --size, TREE is a copy of a mount of C chunkfs: the directory that 00 is in. It has no sums, so only that all chunks are
there, and their sizes, can be checked.`;

/** For verbs that also read copies of chunkfs without a manifest. */
export function addPlainOptions(command: Command): Command {
  return command
    .option('--size <size>', 'of the disk, for a copy of a chunkfs mount, which has no manifest: 20G')
    .option('--chunk-size <size>', `with --size: what chunkfs was given (${DEFAULT_CHUNK_SIZE / 1024}K)`);
}

/** Undefined: a tree with a manifest. Throws usage errors. */
export function plainShape({ size, chunkSize }: PlainOptions): PlainShape | undefined {
  if (size === undefined) {
    if (chunkSize === undefined) return undefined;
    throw usage('--chunk-size goes with --size', { hint: 'a tree with a manifest says both itself' });
  }
  const bytes = parseSize(size);
  if (bytes === undefined) {
    throw usage(`--size=${size} is no size`, { hint: 'give it in bytes, or like 20G: exactly' });
  }
  return { size: bytes, chunkSize: chunkSize === undefined ? DEFAULT_CHUNK_SIZE : parseChunkSize(chunkSize) };
}
