import type { Attributes, FileKind, FilesystemStatistics } from '../filesystem.js';
import { FILE_TYPES, OUT_HEADER_LENGTH } from './protocol.js';
import type { Request } from './request.js';

/** struct fuse_attr, fuse_entry_out and fuse_attr_out. */
export const ATTR_LENGTH = 88;
export const ENTRY_LENGTH = 40 + ATTR_LENGTH;
export const ATTR_OUT_LENGTH = 16 + ATTR_LENGTH;
const DIRENT_LENGTH = 24;
const STATFS_LENGTH = 80;

/** Seconds that the kernel may believe what we said: the tree is frozen, so for as long as it likes. */
const FOREVER = 0x3fffffff;

/**
 * One reply as it is being made (struct fuse_out_header: len u32, error i32, unique u64), in a buffer that is reused.
 * Each method writes one message and returns its length.
 */
export class Reply {
  readonly bytes: Buffer;
  readonly view: DataView;

  constructor(bytes: Buffer) {
    this.bytes = bytes;
    this.view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  }

  /** A header for `payload` bytes after it. `unique` goes back as the 8 bytes it came as: it may exceed 2^53. */
  header(request: Request, payload: number, error = 0): number {
    const length = OUT_HEADER_LENGTH + payload;
    this.view.setUint32(0, length, true);
    this.view.setInt32(4, error, true);
    this.view.setUint32(8, request.uint32(8), true);
    this.view.setUint32(12, request.uint32(12), true);
    return length;
  }

  /** An error reply is a header and nothing else. */
  error(request: Request, error: number): number {
    return this.header(request, 0, error);
  }

  uint32(at: number, value: number): void {
    this.view.setUint32(at, value, true);
  }

  uint64(at: number, value: number): void {
    this.view.setUint32(at, value % 2 ** 32, true);
    this.view.setUint32(at + 4, Math.floor(value / 2 ** 32), true);
  }

  /** struct fuse_attr: ino, size, blocks, three times, their nanoseconds, mode, nlink, uid, gid, rdev, blksize, flags. */
  attributes(at: number, attributes: Attributes): void {
    this.uint64(at, attributes.inode);
    this.uint64(at + 8, attributes.size);
    this.uint64(at + 16, attributes.blocks);
    for (let time = 0; time < 3; time++) {
      this.uint64(at + 24 + 8 * time, attributes.mtime);
      this.uint32(at + 48 + 4 * time, attributes.mtimeNs);
    }
    this.uint32(at + 60, FILE_TYPES[attributes.kind].mode | attributes.mode);
    this.uint32(at + 64, attributes.nlink);
    this.uint32(at + 68, attributes.uid);
    this.uint32(at + 72, attributes.gid);
    this.uint32(at + 76, 0);
    this.uint32(at + 80, attributes.blockSize);
    this.uint32(at + 84, 0);
  }

  /** struct fuse_entry_out: nodeid, generation, two validities and their nanoseconds, attr. */
  entry(at: number, attributes: Attributes): void {
    this.uint64(at, attributes.inode);
    this.uint64(at + 8, 0);
    this.uint64(at + 16, FOREVER);
    this.uint64(at + 24, FOREVER);
    this.uint64(at + 32, 0);
    this.attributes(at + 40, attributes);
  }

  /** An entry that tells the name only: the kernel asks for the rest when somebody wants it. */
  emptyEntry(at: number): void {
    this.bytes.fill(0, at, at + ENTRY_LENGTH);
  }

  /** struct fuse_attr_out: validity, its nanoseconds, padding, attr. */
  attributesOut(at: number, attributes: Attributes): void {
    this.uint64(at, FOREVER);
    this.uint64(at + 8, 0);
    this.attributes(at + 16, attributes);
  }

  /** struct fuse_dirent: ino, off (where to go on), namelen, type, name, padding to 8 bytes. Returns its length. */
  dirent(at: number, name: string, inode: number, kind: FileKind, next: number): number {
    this.uint64(at, inode);
    this.uint64(at + 8, next);
    const nameLength = this.bytes.write(name, at + DIRENT_LENGTH, 'utf8');
    this.uint32(at + 16, nameLength);
    this.uint32(at + 20, FILE_TYPES[kind].dirent);
    const length = direntLength(nameLength);
    this.bytes.fill(0, at + DIRENT_LENGTH + nameLength, at + length);
    return length;
  }

  /** struct fuse_kstatfs: blocks, bfree, bavail, files, ffree, bsize, namelen, frsize. */
  statfs(request: Request, statistics: FilesystemStatistics): number {
    this.bytes.fill(0, OUT_HEADER_LENGTH, OUT_HEADER_LENGTH + STATFS_LENGTH);
    this.uint64(16, statistics.blocks);
    this.uint64(16 + 24, statistics.files);
    this.uint32(16 + 40, statistics.blockSize);
    this.uint32(16 + 44, 255);
    this.uint32(16 + 48, statistics.blockSize);
    return this.header(request, STATFS_LENGTH);
  }
}

/** Bytes that a fuse_dirent takes for a name of `nameLength` bytes. */
export function direntLength(nameLength: number): number {
  return (DIRENT_LENGTH + nameLength + 7) & ~7;
}
