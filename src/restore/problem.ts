import { messageOf, systemCode } from '../errors.js';
import type { ChunkDamage } from './damage.js';

/** Something wrong with a tree that is not about one chunk. */
export interface FileProblem {
  readonly kind: 'manifest' | 'sums' | 'xml' | 'extra' | 'stray' | 'disk' | 'directory';
  /** Relative to the tree. */
  readonly path: string;
  /** A clause that names the file. */
  readonly message: string;
  /** What to do about it, where that is something else than to take the file from another copy. */
  readonly hint?: string;
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

/** For something that does not belong into the tree. */
export function stray(path: string): FileProblem {
  return { kind: 'stray', path, message: `${path} does not belong to the tree` };
}

/** For a directory whose names cannot be read: what does not belong there cannot be known. `name`: what to call it. */
export function unlisted(path: string, error: unknown, name: string = path): FileProblem {
  const message = `${name} cannot be listed: ${systemCode(error) ?? messageOf(error)}`;
  return { kind: 'directory', path, message };
}

export function byPath(a: FileProblem, b: FileProblem): number {
  if (a.path === b.path) return 0;
  return a.path < b.path ? -1 : 1;
}
