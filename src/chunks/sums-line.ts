import { chunkPath, type LayoutKind, layoutOf } from './layout.js';

/** What decides how the lines of a disk's sums file look. */
export interface SumsShape {
  /** The disk's directory in the tree. */
  readonly directory: string;
  readonly layout: LayoutKind;
}

const HASH_DIGITS = 16;

/** Bytes in one line, whatever it says: so line i has a fixed place, and the file a size that is known before any hash. */
export function sumsLineLength({ directory, layout }: SumsShape): number {
  return HASH_DIGITS + 2 + directory.length + 1 + layoutOf(layout).pathLength + 1;
}

/** `<hash>  vda/0001a2/0001a2f3`, as `xxhsum -c` reads it. */
export function sumsLine({ directory, layout }: SumsShape, index: number, hash: string): string {
  return `${hash}  ${directory}/${chunkPath(layoutOf(layout), index)}\n`;
}

/** `#<hash> vda/0001a2/0001a2f3`: of a chunk of zeros that has no file. For `xxhsum -c` it is a comment. */
export function skippedSumsLine({ directory, layout }: SumsShape, index: number, hash: string): string {
  return `#${hash} ${directory}/${chunkPath(layoutOf(layout), index)}\n`;
}
