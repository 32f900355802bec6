import { LRUCache } from 'lru-cache';
import { ROOT_INODE } from '../../chunks/inodes.js';
import type { ReadOnlyFilesystem } from '../filesystem.js';

/** Readers go through the tree directory by directory, so few are in use at a time. */
const CACHED_DIRECTORIES = 1024;

/** Finds inode numbers by the paths that libfuse's high-level interface deals in: absolute, without `.` and `..`. */
export class PathLookup {
  readonly #directories = new LRUCache<string, number>({ max: CACHED_DIRECTORIES });

  constructor(private readonly filesystem: Pick<ReadOnlyFilesystem, 'lookup'>) {}

  /** The inode number, or a negative error number. */
  inodeOf(path: string): number {
    if (path === '/') return ROOT_INODE;
    const slash = path.lastIndexOf('/');
    const parent = this.#directory(path.slice(0, slash));
    return parent < 0 ? parent : this.filesystem.lookup(parent, path.slice(slash + 1));
  }

  #directory(path: string): number {
    if (path === '') return ROOT_INODE;
    const known = this.#directories.get(path);
    if (known !== undefined) return known;
    const inode = this.inodeOf(path);
    if (inode >= 0) this.#directories.set(path, inode);
    return inode;
  }
}
