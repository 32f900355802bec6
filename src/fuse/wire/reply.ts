import type { Attributes, FileKind, FilesystemStatistics, PlusEntries } from '../filesystem.js';
import { FILE_TYPES, OUT_HEADER_LENGTH } from './protocol.js';
import type { Request } from './request.js';

/** struct fuse_attr, fuse_entry_out and fuse_attr_out. */
export const ATTR_LENGTH = 88;
export const ENTRY_LENGTH = 40 + ATTR_LENGTH;
export const ATTR_OUT_LENGTH = 16 + ATTR_LENGTH;
const DIRENT_LENGTH = 24;
const STATFS_LENGTH = 80;

const TWO_32 = 2 ** 32;

/** Seconds that the kernel may believe what we said: the tree is frozen, so for as long as it likes. */
const FOREVER = 0x3fffffff;

/**
 * One reply as it is being made (struct fuse_out_header: len u32, error i32, unique u64), in a buffer that is reused.
 * Each method writes one message and returns its length.
 */
export class Reply {
  readonly bytes: Buffer;
  readonly view: DataView;
  /** The same memory as words: directory listings are written before the compiler has seen much of this code. */
  readonly #words: Uint32Array;
  /** The reply of READDIRPLUS. */
  readonly listing: Listing;

  /** `bytes` must begin at a multiple of 4. */
  constructor(bytes: Buffer) {
    this.bytes = bytes;
    this.view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    this.#words = new Uint32Array(bytes.buffer, bytes.byteOffset, bytes.byteLength >>> 2);
    this.listing = new Listing(this, this.#words);
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
    const words = this.#words;
    const { inode, size, blocks, mtime, mtimeNs } = attributes;
    let i = at >>> 2;
    words[i++] = inode; // Stores take the number modulo 2^32.
    words[i++] = inode / TWO_32;
    words[i++] = size;
    words[i++] = size / TWO_32;
    words[i++] = blocks;
    words[i++] = blocks / TWO_32;
    for (let time = 0; time < 3; time++) {
      words[i++] = mtime;
      words[i++] = mtime / TWO_32;
    }
    for (let time = 0; time < 3; time++) words[i++] = mtimeNs;
    words[i++] = FILE_TYPES[attributes.kind].mode | attributes.mode;
    words[i++] = attributes.nlink;
    words[i++] = attributes.uid;
    words[i++] = attributes.gid;
    words[i++] = 0;
    words[i++] = attributes.blockSize;
    words[i] = 0;
  }

  /** struct fuse_entry_out: nodeid, generation, two validities and their nanoseconds, attr. */
  entry(at: number, attributes: Attributes): void {
    const words = this.#words;
    let i = at >>> 2;
    words[i++] = attributes.inode;
    words[i++] = attributes.inode / TWO_32;
    words[i++] = 0;
    words[i++] = 0;
    words[i++] = FOREVER;
    words[i++] = 0;
    words[i++] = FOREVER;
    words[i++] = 0;
    words[i++] = 0;
    words[i] = 0;
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

  /** struct fuse_dirent: ino, off (where to go on), namelen, type, ASCII name, padding to 8 bytes. Returns its length. */
  dirent(at: number, name: string, inode: number, kind: FileKind, next: number): number {
    const words = this.#words;
    const { bytes } = this;
    const nameLength = name.length;
    const length = direntLength(nameLength);
    const i = at >>> 2;
    words[i] = inode;
    words[i + 1] = inode / TWO_32;
    words[i + 2] = next;
    words[i + 3] = next / TWO_32;
    words[i + 4] = nameLength;
    words[i + 5] = FILE_TYPES[kind].dirent;
    const start = at + DIRENT_LENGTH;
    for (let c = 0; c < nameLength; c++) bytes[start + c] = name.charCodeAt(c);
    for (let c = start + nameLength; c < at + length; c++) bytes[c] = 0;
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

/** struct fuse_direntplus, one after the other: fuse_entry_out and fuse_dirent. */
class Listing implements PlusEntries {
  /** Where the next one goes, in bytes. */
  at = 0;
  /** How many of them have attributes. */
  stats = 0;
  #end = 0;
  /** Of the last one, in bytes. */
  #length = 0;
  #nameLength = 0;

  constructor(
    private readonly reply: Reply,
    private readonly words: Uint32Array,
  ) {}

  begin(at: number, end: number): void {
    this.at = at;
    this.#end = end;
    this.stats = 0;
  }

  entry(
    name: string,
    inode: number,
    kind: FileKind,
    next: number,
    attributes: Attributes | undefined,
  ): boolean {
    const { at, reply } = this;
    const length = ENTRY_LENGTH + direntLength(name.length);
    if (at + length > this.#end) return false;
    if (attributes === undefined) {
      reply.emptyEntry(at);
    } else {
      reply.entry(at, attributes);
      this.stats++;
    }
    reply.dirent(at + ENTRY_LENGTH, name, inode, kind, next);
    this.#length = length;
    this.#nameLength = name.length;
    this.at = at + length;
    return true;
  }

  another(tail: number, inodeLow: number, next: number, mtime: number, blocks: number): boolean {
    const { at, words } = this;
    const length = this.#length;
    if (at + length > this.#end) return false;
    const i = at >>> 2;
    const last = (at - length) >>> 2;
    words.copyWithin(i, last, i);
    // The node, and in its attributes: inode, blocks, three times.
    words[i] = inodeLow;
    words[i + 10] = inodeLow;
    words[i + 14] = blocks;
    words[i + 16] = mtime;
    words[i + 18] = mtime;
    words[i + 20] = mtime;
    // Of the name: inode and cookie.
    words[i + 32] = inodeLow;
    words[i + 34] = next;
    const end = at + ENTRY_LENGTH + DIRENT_LENGTH + this.#nameLength;
    const { bytes } = this.reply;
    bytes[end - 2] = tail;
    bytes[end - 1] = tail >>> 8;
    this.stats++;
    this.at = at + length;
    return true;
  }
}

/** Bytes that a fuse_dirent takes for a name of `nameLength` bytes. */
export function direntLength(nameLength: number): number {
  return (DIRENT_LENGTH + nameLength + 7) & ~7;
}
