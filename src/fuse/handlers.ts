import { EINVAL, EIO, ENOSYS, ENOTTY, ERANGE, EROFS } from './errno.js';
import { type Attributes, NO_ATTRIBUTES, type ReadOnlyFilesystem } from './filesystem.js';
import { answerInit, MAX_READ } from './wire/init.js';
import { OPEN_DIRECT_IO, OPEN_KEEP_CACHE, OPEN_NOFLUSH, Opcode, OUT_HEADER_LENGTH } from './wire/protocol.js';
import { ATTR_OUT_LENGTH, direntLength, ENTRY_LENGTH, type Reply } from './wire/reply.js';
import type { Request } from './wire/request.js';

/** Room for a reply of any request: the header and the most that one READ or READDIR asks for. */
export const REPLY_BUFFER_LENGTH = OUT_HEADER_LENGTH + MAX_READ;

/**
 * Numbers that `list --json` and `cleanup --json` show; each thread counts its own. `chunksRead`: of how many
 * chunk files anything was read.
 */
export const COUNTER_NAMES = ['requests', 'stats', 'reads', 'bytesRead', 'ioErrors', 'chunksRead'] as const;

export interface ServedFilesystem {
  readonly filesystem: ReadOnlyFilesystem;
  /** Leave the kernel's page cache alone: better for readers with large buffers. */
  readonly directIo: boolean;
  /** In the order of COUNTER_NAMES. */
  readonly counters: Float64Array;
}

/** Counts an answered read of `got` bytes. */
export function countRead(
  counters: Float64Array,
  filesystem: ReadOnlyFilesystem,
  inode: number,
  got: number,
): void {
  counters[2]!++;
  counters[3]! += got;
  if (filesystem.firstRead(inode)) counters[5]!++;
}

/** Length of the reply in the reply buffer; 0: this request gets none. */
type Handler = (served: ServedFilesystem, request: Request, reply: Reply) => number;

const attributes: Attributes = { ...NO_ATTRIBUTES };

const lookup: Handler = ({ filesystem, counters }, request, reply) => {
  counters[1]!++;
  const inode = filesystem.lookup(request.inode, request.string(40));
  if (inode < 0) return reply.error(request, inode);
  const error = filesystem.getattr(inode, attributes);
  if (error < 0) return reply.error(request, error);
  reply.entry(16, attributes);
  return reply.header(request, ENTRY_LENGTH);
};

const getattr: Handler = ({ filesystem, counters }, request, reply) => {
  counters[1]!++;
  const error = filesystem.getattr(request.inode, attributes);
  if (error < 0) return reply.error(request, error);
  reply.attributesOut(16, attributes);
  return reply.header(request, ATTR_OUT_LENGTH);
};

const readlink: Handler = ({ filesystem }, request, reply) => {
  const target = filesystem.readlink(request.inode);
  if (typeof target === 'number') return reply.error(request, target);
  return reply.header(request, reply.bytes.write(target, OUT_HEADER_LENGTH, 'utf8'));
};

/** struct fuse_open_out: fh u64, open_flags u32. KEEP_CACHE and not ENOSYS: see CVE-2025-68821. */
const open: Handler = ({ directIo }, request, reply) => {
  reply.uint64(16, 0);
  reply.uint32(24, OPEN_NOFLUSH | (directIo ? OPEN_DIRECT_IO : OPEN_KEEP_CACHE));
  reply.uint32(28, 0);
  return reply.header(request, 16);
};

/** struct fuse_read_in: fh u64, offset u64, size u32, … */
const read: Handler = ({ filesystem, counters }, request, reply) => {
  const size = Math.min(request.uint32(56), MAX_READ);
  const got = filesystem.read(request.inode, request.uint64(48), size, reply.bytes, OUT_HEADER_LENGTH);
  if (got < 0) return reply.error(request, got);
  countRead(counters, filesystem, request.inode, got);
  return reply.header(request, got);
};

/** READDIR and READDIRPLUS have READ's arguments; `offset` is the cookie to go on from. */
const readdir: Handler = ({ filesystem }, request, reply) => {
  const end = OUT_HEADER_LENGTH + Math.min(request.uint32(56), MAX_READ);
  let at = OUT_HEADER_LENGTH;
  const error = filesystem.readdir(request.inode, request.uint64(48), (name, inode, kind, next) => {
    if (at + direntLength(name.length) > end) return false;
    at += reply.dirent(at, name, inode, kind, next);
    return true;
  });
  return error < 0 ? reply.error(request, error) : reply.header(request, at - OUT_HEADER_LENGTH);
};

const readdirplus: Handler = ({ filesystem, counters }, request, reply) => {
  const end = OUT_HEADER_LENGTH + Math.min(request.uint32(56), MAX_READ);
  const from = request.uint64(48);
  const listing = reply.listing;
  listing.begin(OUT_HEADER_LENGTH, end);
  const error =
    filesystem.readdirplus?.(request.inode, from, listing) ??
    filesystem.readdir(request.inode, from, (name, inode, kind, next) => {
      // "." and ".." must not be entered; a file that cannot be looked at is listed, and its error comes with LOOKUP.
      const known = name !== '.' && name !== '..' && filesystem.getattr(inode, attributes) === 0;
      return listing.entry(name, inode, kind, next, known ? attributes : undefined);
    });
  counters[1]! += listing.stats;
  return error < 0 ? reply.error(request, error) : reply.header(request, listing.at - OUT_HEADER_LENGTH);
};

const statfs: Handler = ({ filesystem }, request, reply) => reply.statfs(request, filesystem.statistics());

/** Both xattr calls ask with size 0 for the length (struct fuse_getxattr_out: size u32, padding). */
function answerXattr(request: Request, reply: Reply, value: string): number {
  const size = request.uint32(40);
  const length = Buffer.byteLength(value);
  if (size === 0) {
    reply.uint64(16, length);
    return reply.header(request, 8);
  }
  if (length > size) return reply.error(request, ERANGE);
  return reply.header(request, reply.bytes.write(value, OUT_HEADER_LENGTH, 'utf8'));
}

const getxattr: Handler = ({ filesystem }, request, reply) => {
  const value = filesystem.getxattr(request.inode, request.string(48));
  return typeof value === 'number' ? reply.error(request, value) : answerXattr(request, reply, value);
};

const listxattr: Handler = ({ filesystem }, request, reply) => {
  const names = filesystem.listxattr(request.inode);
  if (typeof names === 'number') return reply.error(request, names);
  return answerXattr(request, reply, names.map((name) => `${name}\0`).join(''));
};

/** struct fuse_lseek_in: fh u64, offset u64, whence u32. */
const lseek: Handler = ({ filesystem }, request, reply) => {
  const position = filesystem.seek(request.inode, request.uint64(48), request.uint32(56));
  if (position < 0) return reply.error(request, position);
  reply.uint64(16, position);
  return reply.header(request, 8);
};

const init: Handler = (_, request, reply) => answerInit(request, reply);
const succeed: Handler = (_, request, reply) => reply.header(request, 0);
const noReply: Handler = () => 0;
const readOnly: Handler = (_, request, reply) => reply.error(request, EROFS);

/** A handler, and the bytes that its payload must have. */
type HandlerEntry = readonly [Handler, number];

/**
 * Every opcode that is not here is answered ENOSYS, which for FLUSH, OPENDIR, ACCESS, INTERRUPT, STATX and others makes the kernel
 * do without them from then on.
 */
const HANDLERS: Readonly<Record<number, HandlerEntry>> = {
  [Opcode.INIT]: [init, 16],
  [Opcode.LOOKUP]: [lookup, 1],
  [Opcode.GETATTR]: [getattr, 0],
  [Opcode.READLINK]: [readlink, 0],
  [Opcode.OPEN]: [open, 8],
  [Opcode.READ]: [read, 20],
  [Opcode.READDIR]: [readdir, 20],
  [Opcode.READDIRPLUS]: [readdirplus, 20],
  [Opcode.STATFS]: [statfs, 0],
  [Opcode.GETXATTR]: [getxattr, 8],
  [Opcode.LISTXATTR]: [listxattr, 8],
  [Opcode.LSEEK]: [lseek, 20],
  [Opcode.RELEASE]: [succeed, 0],
  [Opcode.RELEASEDIR]: [succeed, 0],
  [Opcode.DESTROY]: [succeed, 0],
  [Opcode.FORGET]: [noReply, 0],
  [Opcode.BATCH_FORGET]: [noReply, 0],
  [Opcode.IOCTL]: [(_, request, reply) => reply.error(request, ENOTTY), 0],
  ...Object.fromEntries(
    [
      Opcode.SETATTR,
      Opcode.SYMLINK,
      Opcode.MKNOD,
      Opcode.MKDIR,
      Opcode.UNLINK,
      Opcode.RMDIR,
      Opcode.RENAME,
      Opcode.LINK,
      Opcode.WRITE,
      Opcode.SETXATTR,
      Opcode.REMOVEXATTR,
      Opcode.CREATE,
      Opcode.FALLOCATE,
      Opcode.RENAME2,
      Opcode.COPY_FILE_RANGE,
      Opcode.TMPFILE,
    ].map((opcode): [number, HandlerEntry] => [opcode, [readOnly, 0]]),
  ),
};

/** Answers one request into `reply`. Returns the length of the reply; 0: there is none to send. */
export function handle(served: ServedFilesystem, request: Request, reply: Reply): number {
  served.counters[0]!++;
  const entry = HANDLERS[request.opcode];
  if (entry === undefined) return reply.error(request, ENOSYS);
  const [handler, payload] = entry;
  const length = request.has(payload) ? handler(served, request, reply) : reply.error(request, EINVAL);
  if (length === OUT_HEADER_LENGTH && reply.view.getInt32(4, true) === EIO) served.counters[4]!++;
  return length;
}
