import * as fs from 'node:fs';
import { type ChunkHasher, createHasher } from '../chunks/chunk-hash.js';
import {
  directoryInodeNumber,
  INODE_CHUNK,
  INODE_DIRECTORY,
  INODE_DISK,
  inodeHigh,
  numberInRank,
  ROOT_INODE,
  rankOf,
  SUMS_NUMBER,
} from '../chunks/inodes.js';
import { HEX_BYTES, HEX_TAILS } from '../chunks/layout.js';
import { HASH_XATTR, SUMS_SUFFIX } from '../chunks/paths.js';
import { DATA, markServed, READY, UNREADABLE, ZERO } from '../content-index/rows.js';
import type { ChunkTree, TreeFile } from './chunk-tree.js';
import { DiskView } from './disk-view.js';
import { EINVAL, EIO, EISDIR, ENODATA, ENOENT, ENOTDIR, ENXIO } from './errno.js';
import {
  type Attributes,
  type EmitEntry,
  type FilesystemStatistics,
  NO_ATTRIBUTES,
  type PlusEntries,
  type ReadOnlyFilesystem,
  SEEK_DATA,
  SEEK_HOLE,
} from './filesystem.js';

/** What an inode number stands for. `number` is the chunk's, or the directory's among those of its rank: see Layout. */
type Node =
  | { readonly kind: 'root' }
  | { readonly kind: 'file'; readonly file: TreeFile }
  | { readonly kind: 'sums'; readonly view: DiskView }
  | { readonly kind: 'directory'; readonly view: DiskView; readonly rank: number; readonly number: number }
  | { readonly kind: 'chunk'; readonly view: DiskView; readonly number: number };

/** glibc sizes a directory read by st_blksize; large ones save round trips. */
const DIRECTORY_BLOCK_SIZE = 256 * 1024;
/** What coreutils take at least; more makes them ask the kernel for fresh memory for each file, which costs a quarter of the time. */
const MAX_BLOCK_SIZE = 128 * 1024;
const STATFS_BLOCK_SIZE = 4096;
const DIRECTORY_SIZE = 4096;

/** Cookies of `.` and `..`; the entries proper follow. */
const FIRST_ENTRY = 2;

/** A tree of chunks (design, section 3) as a file system. One instance a thread, all on the same shared memory. */
export class ChunkFilesystem implements ReadOnlyFilesystem {
  readonly views: readonly DiskView[];
  readonly #byHigh = new Map<number, { readonly view: DiskView; readonly kind: number }>();
  readonly #attributes: Attributes = { ...NO_ATTRIBUTES };
  readonly #top: readonly { readonly name: string; readonly inode: number; readonly directory: boolean }[];

  constructor(
    private readonly tree: ChunkTree,
    hasher: ChunkHasher,
  ) {
    this.views = tree.disks.map((disk) => new DiskView(disk, hasher));
    for (const view of this.views) {
      for (const kind of [INODE_DISK, INODE_DIRECTORY, INODE_CHUNK]) {
        this.#byHigh.set(inodeHigh(view.disk.part, kind), { view, kind });
      }
    }
    this.#top = [
      ...tree.files.map(({ name, inode }) => ({ name, inode, directory: false })),
      ...this.views.flatMap((view) => [
        {
          name: view.target + SUMS_SUFFIX,
          inode: this.#inode(view, INODE_DISK, SUMS_NUMBER),
          directory: false,
        },
        { name: view.disk.directory, inode: this.#inode(view, INODE_DISK, 0), directory: true },
      ]),
    ];
  }

  lookup(parent: number, name: string): number {
    const node = this.#node(parent);
    if (node === undefined) return ENOENT;
    if (name === '.') return parent;
    switch (node.kind) {
      case 'root':
        return name === '..' ? ROOT_INODE : (this.#top.find((entry) => entry.name === name)?.inode ?? ENOENT);
      case 'directory': {
        const { view, rank, number } = node;
        if (name === '..') return this.#parentOf(view, rank, number);
        if (rank > 0) {
          const directory = view.layout.parseDirectoryName(rank - 1, number, name);
          if (directory < 0 || directory >= view.directoriesOf(rank - 1)) return ENOENT;
          return this.#directoryInode(view, rank - 1, directory);
        }
        const chunk = view.layout.parseChunkName(number, name);
        if (chunk < 0 || !view.hasChunk(chunk) || view.isSkipped(chunk)) return ENOENT;
        return this.#inode(view, INODE_CHUNK, chunk);
      }
      default:
        return ENOTDIR;
    }
  }

  getattr(inode: number, into: Attributes): number {
    const node = this.#node(inode);
    if (node === undefined) return ENOENT;
    into.inode = inode;
    into.uid = this.tree.uid;
    into.gid = this.tree.gid;
    into.mtimeNs = 0;
    switch (node.kind) {
      case 'chunk':
        return this.#chunkAttributes(node.view, node.number, into);
      case 'file':
        this.#fileAttributes(contentSize(node.file), node.file.mtime, into);
        into.mtimeNs = node.file.mtimeNs;
        return 0;
      case 'sums':
        this.#fileAttributes(node.view.sumsSize, node.view.sumsMtime, into);
        return 0;
      case 'root':
        this.#directoryAttributes(this.views.length, this.tree.rootMtime, into);
        return 0;
      case 'directory': {
        const { view, rank, number } = node;
        if (rank === 0) {
          this.#directoryAttributes(0, view.directoryMtimeOf(number), into);
        } else {
          const { first, end } = view.subdirectories(rank, number);
          this.#directoryAttributes(end - first, view.disk.directoryMtime, into);
        }
        return 0;
      }
    }
  }

  readdir(inode: number, from: number, emit: EmitEntry): number {
    const node = this.#node(inode);
    if (node === undefined) return ENOENT;
    if (node.kind !== 'root' && node.kind !== 'directory') return ENOTDIR;
    if (from < 1 && !emit('.', inode, 'directory', 1)) return 0;
    if (from < 2 && !emit('..', this.lookup(inode, '..'), 'directory', 2)) return 0;
    const first = Math.max(0, from - FIRST_ENTRY);
    if (node.kind === 'root') this.#listTop(first, emit);
    else if (node.rank === 0) this.#listChunks(node.view, node.number, first, emit);
    else this.#listDirectories(node.view, node.rank, node.number, first, emit);
    return 0;
  }

  /** Of chunk directories only: most of what others list is these, and what is alike in them need not be found out for each. */
  readdirplus(inode: number, from: number, entries: PlusEntries): number | undefined {
    const node = this.#node(inode);
    if (node?.kind !== 'directory' || node.rank > 0) return undefined;
    if (from < 1 && !entries.entry('.', inode, 'directory', 1, undefined)) return 0;
    if (from < 2 && !entries.entry('..', this.lookup(inode, '..'), 'directory', 2, undefined)) return 0;
    this.#listChunksPlus(node.view, node.number, Math.max(0, from - FIRST_ENTRY), entries);
    return 0;
  }

  read(inode: number, position: number, length: number, into: Uint8Array, at: number): number {
    const node = this.#node(inode);
    switch (node?.kind) {
      case undefined:
        return ENOENT;
      case 'chunk':
        return node.view.readChunk(node.number, position, length, into, at);
      case 'sums':
        return node.view.readSums(position, length, into, at);
      case 'file':
        return readContent(node.file, position, length, into, at);
      default:
        return EISDIR;
    }
  }

  firstRead(inode: number): boolean {
    const node = this.#node(inode);
    return node?.kind === 'chunk' && markServed(node.view.disk.rows, node.number);
  }

  /** There are no symbolic links in a tree. */
  readlink(): number {
    return EINVAL;
  }

  getxattr(inode: number, name: string): string | number {
    const node = this.#node(inode);
    if (node === undefined) return ENOENT;
    return node.kind === 'chunk' && name === HASH_XATTR ? node.view.hashOf(node.number) : ENODATA;
  }

  listxattr(inode: number): readonly string[] | number {
    const node = this.#node(inode);
    if (node === undefined) return ENOENT;
    return node.kind === 'chunk' ? [HASH_XATTR] : [];
  }

  seek(inode: number, position: number, whence: number): number {
    const node = this.#node(inode);
    if (node === undefined) return ENOENT;
    let size: number;
    let hole = false;
    if (node.kind === 'chunk') {
      size = node.view.lengthOf(node.number);
      hole = node.view.resolver.resolve(node.number) === ZERO;
    } else if (node.kind === 'sums') {
      size = node.view.sumsSize;
    } else if (node.kind === 'file') {
      size = contentSize(node.file);
    } else {
      return EINVAL;
    }
    if (whence !== SEEK_DATA && whence !== SEEK_HOLE) return EINVAL;
    if (position >= size || (whence === SEEK_DATA && hole)) return ENXIO;
    return whence === SEEK_DATA || hole ? position : size;
  }

  statistics(): FilesystemStatistics {
    const bytes = this.views.reduce((sum, view) => sum + view.disk.geometry.size, 0);
    const files = this.views.reduce(
      (sum, view) => sum + view.disk.geometry.chunkCount + view.directoryCount,
      0,
    );
    return {
      blockSize: STATFS_BLOCK_SIZE,
      blocks: Math.ceil(bytes / STATFS_BLOCK_SIZE),
      files: files + this.#top.length + 1,
    };
  }

  #inode(view: DiskView, kind: number, number: number): number {
    return inodeHigh(view.disk.part, kind) * 2 ** 32 + number;
  }

  #node(inode: number): Node | undefined {
    const high = Math.floor(inode / 2 ** 32);
    const number = inode - high * 2 ** 32;
    if (high === 0) {
      if (inode === ROOT_INODE) return { kind: 'root' };
      const file = this.tree.files.find((candidate) => candidate.inode === inode);
      return file === undefined ? undefined : { kind: 'file', file };
    }
    const found = this.#byHigh.get(high);
    if (found === undefined) return undefined;
    const { view, kind } = found;
    if (kind === INODE_CHUNK) return view.hasChunk(number) ? { kind: 'chunk', view, number } : undefined;
    if (kind === INODE_DIRECTORY) return directoryNode(view, rankOf(number), numberInRank(number));
    if (number > SUMS_NUMBER) return undefined;
    if (number === SUMS_NUMBER) return { kind: 'sums', view };
    return { kind: 'directory', view, rank: view.layout.levels, number: 0 };
  }

  /** The disk's own directory is the one of rank `levels`. */
  #directoryInode(view: DiskView, rank: number, number: number): number {
    if (rank === view.layout.levels) return this.#inode(view, INODE_DISK, 0);
    return this.#inode(view, INODE_DIRECTORY, directoryInodeNumber(rank, number));
  }

  #parentOf(view: DiskView, rank: number, number: number): number {
    if (rank === view.layout.levels) return ROOT_INODE;
    return this.#directoryInode(view, rank + 1, Math.floor(number / HEX_BYTES.length));
  }

  #chunkAttributes(view: DiskView, chunk: number, into: Attributes): number {
    const state = view.resolver.resolve(chunk);
    if (state === UNREADABLE) return EIO;
    if (state === ZERO && view.skipsZeros) return ENOENT;
    into.kind = 'file';
    into.size = view.lengthOf(chunk);
    into.blocks = view.blocksOf(chunk, state);
    into.mtime = view.mtimeOf(chunk);
    into.mode = this.tree.fileMode;
    into.nlink = 1;
    into.blockSize = Math.min(view.disk.geometry.chunkSize, MAX_BLOCK_SIZE);
    return 0;
  }

  #fileAttributes(size: number, mtime: number, into: Attributes): void {
    into.kind = 'file';
    into.size = size;
    into.blocks = Math.ceil(size / 512);
    into.mtime = mtime;
    into.mode = this.tree.fileMode;
    into.nlink = 1;
    into.blockSize = STATFS_BLOCK_SIZE;
  }

  #directoryAttributes(subdirectories: number, mtime: number, into: Attributes): void {
    into.kind = 'directory';
    into.size = DIRECTORY_SIZE;
    into.blocks = DIRECTORY_SIZE / 512;
    into.mtime = mtime;
    into.mode = this.tree.directoryMode;
    into.nlink = 2 + subdirectories;
    into.blockSize = DIRECTORY_BLOCK_SIZE;
  }

  #listTop(first: number, emit: EmitEntry): void {
    for (let i = first; i < this.#top.length; i++) {
      const { name, inode, directory } = this.#top[i]!;
      if (!emit(name, inode, directory ? 'directory' : 'file', i + FIRST_ENTRY + 1)) return;
    }
  }

  #listDirectories(view: DiskView, rank: number, number: number, from: number, emit: EmitEntry): void {
    const { first, end } = view.subdirectories(rank, number);
    const base = this.#directoryInode(view, rank - 1, first);
    for (let i = from; i < end - first; i++) {
      const name = view.layout.directoryName(rank - 1, first + i);
      if (!emit(name, base + i, 'directory', i + FIRST_ENTRY + 1)) return;
    }
  }

  #listChunks(view: DiskView, directory: number, first: number, emit: EmitEntry): void {
    const firstChunk = view.firstChunkOf(directory);
    const base = this.#inode(view, INODE_CHUNK, firstChunk);
    const count = view.chunksIn(directory);
    const prefix = view.layout.chunkPrefix(directory);
    for (let i = first; i < count; i++) {
      if (view.skipsZeros && view.isSkipped(firstChunk + i)) continue;
      if (!emit(prefix + HEX_BYTES[i]!, base + i, 'file', i + FIRST_ENTRY + 1)) return;
    }
  }

  /** Written for a thread that has just begun: little is compiled by then, so each step and each call for a chunk counts. */
  #listChunksPlus(view: DiskView, directory: number, first: number, entries: PlusEntries): void {
    const { resolver, skipsZeros } = view;
    const { states, mtimes } = view.disk.rows;
    const firstChunk = view.firstChunkOf(directory);
    const base = this.#inode(view, INODE_CHUNK, firstChunk);
    const count = view.chunksIn(directory);
    const prefix = view.layout.chunkPrefix(directory);
    const size = view.lengthOf(firstChunk);
    const alike = view.lengthOf(firstChunk + count - 1) === size ? count : count - 1;
    const blocks = view.blocksOf(firstChunk, DATA);
    let known = false;
    for (let i = first; i < count; i++) {
      const chunk = firstChunk + i;
      const next = i + FIRST_ENTRY + 1;
      let state = Atomics.load(states, chunk);
      if (state < READY) state = resolver.resolve(chunk);
      if (state === ZERO && skipsZeros) continue;
      if (known && i < alike && state !== UNREADABLE) {
        if (!entries.another(HEX_TAILS[i]!, chunk, next, mtimes[chunk]!, state === ZERO ? 0 : blocks)) return;
      } else {
        const attributes = this.getattr(base + i, this.#attributes) < 0 ? undefined : this.#attributes;
        if (!entries.entry(prefix + HEX_BYTES[i]!, base + i, 'file', next, attributes)) return;
        known = attributes !== undefined;
      }
    }
  }
}

function directoryNode(view: DiskView, rank: number, number: number): Node | undefined {
  const exists = rank < view.layout.levels && number < view.directoriesOf(rank);
  return exists ? { kind: 'directory', view, rank, number } : undefined;
}

function contentSize(file: TreeFile): number {
  return file.content instanceof Uint8Array ? file.content.byteLength : file.content.size;
}

function readContent(file: TreeFile, position: number, length: number, into: Uint8Array, at: number): number {
  const count = Math.min(length, contentSize(file) - position);
  if (count <= 0) return 0;
  if (file.content instanceof Uint8Array) {
    into.set(file.content.subarray(position, position + count), at);
    return count;
  }
  let done = 0;
  try {
    while (done < count) {
      const got = fs.readSync(file.content.fd, into, at + done, count - done, position + done);
      if (got === 0) return EIO;
      done += got;
    }
  } catch {
    return EIO;
  }
  return count;
}

/** The FilesystemFactory of trees; `data` is a ChunkTree. */
export async function createFilesystem(data: unknown): Promise<ReadOnlyFilesystem> {
  return new ChunkFilesystem(data as ChunkTree, await createHasher());
}
