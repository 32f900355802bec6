export type FileKind = 'file' | 'directory' | 'symlink';

/** What stat(2) shows. Times are whole seconds and nanoseconds since the epoch; atime and ctime are the mtime. */
export interface Attributes {
  inode: number;
  kind: FileKind;
  /** Bytes. */
  size: number;
  /** Units of 512 bytes. */
  blocks: number;
  mtime: number;
  mtimeNs: number;
  /** Permission bits only. */
  mode: number;
  nlink: number;
  uid: number;
  gid: number;
  /** st_blksize: what programs should read at once. */
  blockSize: number;
}

/** To be filled in. */
export const NO_ATTRIBUTES: Attributes = {
  inode: 0,
  kind: 'file',
  size: 0,
  blocks: 0,
  mtime: 0,
  mtimeNs: 0,
  mode: 0,
  nlink: 1,
  uid: 0,
  gid: 0,
  blockSize: 4096,
};

export interface FilesystemStatistics {
  /** Bytes a block. */
  readonly blockSize: number;
  readonly blocks: number;
  readonly files: number;
}

/** Takes one directory entry; names are ASCII; `next` is the cookie to go on from after it. False: there is no room for it. */
export type EmitEntry = (name: string, inode: number, kind: FileKind, next: number) => boolean;

/** Takes directory entries with their attributes. Both methods: false when there is no room for the entry. */
export interface PlusEntries {
  /** As EmitEntry. Without attributes only the name is told. */
  entry(
    name: string,
    inode: number,
    kind: FileKind,
    next: number,
    attributes: Attributes | undefined,
  ): boolean;
  /**
   * An entry like the last one, but for the lower half of its inode number, the last two characters of its name (`tail`, the first of
   * them in the low byte), and what else is given.
   */
  another(tail: number, inodeLow: number, next: number, mtime: number, blocks: number): boolean;
}

export const SEEK_DATA = 3;
export const SEEK_HOLE = 4;

/**
 * A read-only file system, by inode numbers, as both transports serve it. The tree is frozen: everything a method
 * answers stays true as long as the mount lasts. Methods are synchronous, run in several threads at once
 * (one instance a thread) and never throw: they answer a negative error number of errno.ts instead. Inode
 * numbers are below 2^53, the root is 1, and none is ever used for two files.
 */
export interface ReadOnlyFilesystem {
  /** The inode number of `name` in directory `parent`. */
  lookup(parent: number, name: string): number;
  /** Fills `into`; 0 if that went well. */
  getattr(inode: number, into: Attributes): number;
  /** Emits entries (`.` and `..` among them) from cookie `from` (0: the first) until one is refused; 0 if that went well. */
  readdir(inode: number, from: number, emit: EmitEntry): number;
  /** As `readdir`, with what `getattr` says of each entry. Undefined: nothing was emitted, and these two are to be asked. */
  readdirplus?(inode: number, from: number, entries: PlusEntries): number | undefined;
  /** Reads up to `length` bytes into `into` at `at`. Fewer only at the end of the file. Answers the number of bytes. */
  read(inode: number, position: number, length: number, into: Uint8Array, at: number): number;
  /** Notes that a file was read. Whether it is the first time, in any thread, of one that is to be counted. */
  firstRead(inode: number): boolean;
  readlink(inode: number): string | number;
  getxattr(inode: number, name: string): string | number;
  listxattr(inode: number): readonly string[] | number;
  /** Position of the next data (SEEK_DATA) or hole (SEEK_HOLE) at or after `position`. */
  seek(inode: number, position: number, whence: number): number;
  statistics(): FilesystemStatistics;
}
