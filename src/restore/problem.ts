import { messageOf } from '../errors.js';
import type { ChunkDamage } from './damage.js';

/** Something wrong with a tree that is not about one chunk. */
export interface FileProblem {
  readonly kind: 'manifest' | 'sums' | 'xml' | 'extra' | 'stray' | 'disk';
  /** Relative to the tree. */
  readonly path: string;
  /** A clause that names the file. */
  readonly message: string;
}

/** One chunk that two trees have different content of. */
export interface ChunkDifference {
  readonly kind: 'differs';
  readonly disk: string;
  readonly chunk: number;
  readonly path: string;
  /** Its hash in the tree compared with: 16 hex digits. */
  readonly expected: string;
  readonly found: string;
}

export type Problem = FileProblem | ChunkDifference | ChunkDamage;

export function fileProblem(kind: FileProblem['kind'], path: string, error: unknown): FileProblem {
  return { kind, path, message: messageOf(error) };
}
