import type { Operations, Stat, Statfs, XattrReply } from 'fuse-native';
import { EIO, ERANGE } from '../errno.js';
import {
  type Attributes,
  type FilesystemStatistics,
  NO_ATTRIBUTES,
  type ReadOnlyFilesystem,
} from '../filesystem.js';
import { countRead } from '../handlers.js';
import { FILE_TYPES } from '../wire/protocol.js';
import type { InodeNumbers } from './inode-numbers.js';
import { PathLookup } from './path-lookup.js';
import { Wakefulness } from './wakefulness.js';

/** Numbers of statfs have 32 bits here, so larger disks are counted in larger blocks. */
const MAX_BLOCKS = 2 ** 32 - 1;

function toStat(attributes: Attributes, inodes: InodeNumbers): Stat {
  // Rounded up: the manifest's time must stay later than that of every chunk.
  const milliseconds = attributes.mtime * 1000 + Math.ceil(attributes.mtimeNs / 1e6);
  const { kind, mode, size, blocks, blockSize, nlink, uid, gid } = attributes;
  return {
    mode: FILE_TYPES[kind].mode | mode,
    ino: inodes.of(attributes.inode),
    size,
    blocks,
    blksize: blockSize,
    nlink,
    uid,
    gid,
    atime: milliseconds,
    mtime: milliseconds,
    ctime: milliseconds,
  };
}

export function toStatfs({ blockSize, blocks, files }: FilesystemStatistics): Statfs {
  let scale = 1;
  while (Math.ceil(blocks / scale) > MAX_BLOCKS) scale *= 2;
  return {
    bsize: blockSize * scale,
    frsize: blockSize * scale,
    blocks: Math.ceil(blocks / scale),
    files: Math.min(files, MAX_BLOCKS),
    namemax: 255,
  };
}

/**
 * A read-only file system as fuse-native calls it: by paths, on the main thread. Counts what it answers in `counters`,
 * in the order of COUNTER_NAMES.
 */
export class NativeOperations {
  readonly #paths: PathLookup;
  readonly #wakefulness = new Wakefulness();
  readonly #attributes: Attributes = { ...NO_ATTRIBUTES };

  constructor(
    private readonly filesystem: ReadOnlyFilesystem,
    private readonly inodes: InodeNumbers,
    private readonly counters: Float64Array,
  ) {
    this.#paths = new PathLookup(filesystem);
  }

  /** Without `open` and `release`, which libfuse then answers itself: nobody needs a handle. */
  table(): Operations {
    return {
      statfs: (_path, done) => {
        this.#count(0);
        done(0, toStatfs(this.filesystem.statistics()));
      },
      getattr: (path, done) => {
        this.counters[1]!++;
        const error = this.#count(this.#getattr(path));
        if (error < 0) done(error);
        else done(0, toStat(this.#attributes, this.inodes));
      },
      readdir: (path, done) => {
        const names: string[] = [];
        const stats: Stat[] = [];
        const error = this.#count(this.#readdir(path, names, stats));
        if (error < 0) done(error);
        else done(0, names, stats);
      },
      read: (path, _fd, buffer, length, position, done) =>
        done(this.#count(this.#read(path, buffer, length, position))),
      getxattr: true,
      listxattr: true,
    };
  }

  getxattr(reply: XattrReply, path: string, name: string, buffer: Buffer): void {
    const inode = this.#paths.inodeOf(path);
    const value = inode < 0 ? inode : this.filesystem.getxattr(inode, name);
    reply(this.#count(fill(buffer, value)), buffer.buffer);
  }

  listxattr(reply: XattrReply, path: string, buffer: Buffer): void {
    const inode = this.#paths.inodeOf(path);
    const names = inode < 0 ? inode : this.filesystem.listxattr(inode);
    const value = typeof names === 'number' ? names : names.map((name) => `${name}\0`).join('');
    reply(this.#count(fill(buffer, value)), buffer.buffer);
  }

  #getattr(path: string): number {
    const inode = this.#paths.inodeOf(path);
    return inode < 0 ? inode : this.filesystem.getattr(inode, this.#attributes);
  }

  /** libfuse wants all names at once, and of a stat the type and the inode number. */
  #readdir(path: string, names: string[], stats: Stat[]): number {
    const inode = this.#paths.inodeOf(path);
    if (inode < 0) return inode;
    return this.filesystem.readdir(inode, 0, (name, entry, kind) => {
      names.push(name);
      stats.push({ mode: FILE_TYPES[kind].mode, ino: this.inodes.of(entry) });
      return true;
    });
  }

  #read(path: string, buffer: Buffer, length: number, position: number): number {
    const inode = this.#paths.inodeOf(path);
    if (inode < 0) return inode;
    const got = this.filesystem.read(inode, position, Math.min(length, buffer.length), buffer, 0);
    if (got < 0) return got;
    countRead(this.counters, this.filesystem, inode, got);
    return got;
  }

  #count(result: number): number {
    this.#wakefulness.prolong();
    this.counters[0]!++;
    if (result === EIO) this.counters[4]!++;
    return result;
  }
}

/** Both xattr calls ask with an empty buffer for the length. */
function fill(buffer: Buffer, value: string | number): number {
  if (typeof value === 'number') return value;
  const length = Buffer.byteLength(value);
  if (buffer.length === 0) return length;
  return length > buffer.length ? ERANGE : buffer.write(value, 'utf8');
}
