/**
 * The numbers of Linux's FUSE protocol, from include/uapi/linux/fuse.h (names without their FUSE_ prefix).
 * Integers are in the processor's byte order, which is little-endian wherever Node runs.
 */

export const MAJOR = 7;
/** The newest minor version whose messages we know: that of Linux 6.18. */
export const MINOR = 45;

export const IN_HEADER_LENGTH = 40;
export const OUT_HEADER_LENGTH = 16;

export const Opcode = {
  LOOKUP: 1,
  FORGET: 2,
  GETATTR: 3,
  SETATTR: 4,
  READLINK: 5,
  SYMLINK: 6,
  MKNOD: 8,
  MKDIR: 9,
  UNLINK: 10,
  RMDIR: 11,
  RENAME: 12,
  LINK: 13,
  OPEN: 14,
  READ: 15,
  WRITE: 16,
  STATFS: 17,
  RELEASE: 18,
  FSYNC: 20,
  SETXATTR: 21,
  GETXATTR: 22,
  LISTXATTR: 23,
  REMOVEXATTR: 24,
  FLUSH: 25,
  INIT: 26,
  OPENDIR: 27,
  READDIR: 28,
  RELEASEDIR: 29,
  FSYNCDIR: 30,
  ACCESS: 34,
  CREATE: 35,
  INTERRUPT: 36,
  BMAP: 37,
  DESTROY: 38,
  IOCTL: 39,
  POLL: 40,
  BATCH_FORGET: 42,
  FALLOCATE: 43,
  READDIRPLUS: 44,
  RENAME2: 45,
  LSEEK: 46,
  COPY_FILE_RANGE: 47,
  TMPFILE: 51,
  STATX: 52,
  SETUPMAPPING: 48,
} as const;

/** Flags of INIT, as bit numbers; from 32 on they are in flags2. */
export const InitFlag = {
  ASYNC_READ: 0,
  EXPORT_SUPPORT: 4,
  DO_READDIRPLUS: 13,
  ASYNC_DIO: 15,
  PARALLEL_DIROPS: 18,
  ABORT_ERROR: 21,
  MAX_PAGES: 22,
  CACHE_SYMLINKS: 23,
  EXPLICIT_INVAL_DATA: 25,
  INIT_EXT: 30,
  DIRECT_IO_ALLOW_MMAP: 36,
} as const;

export const OPEN_DIRECT_IO = 1 << 0;
export const OPEN_KEEP_CACHE = 1 << 1;
export const OPEN_NOFLUSH = 1 << 5;

/** File type bits of st_mode and the d_type that goes with them: see inode(7) and readdir(3). */
export const FILE_TYPES = {
  file: { mode: 0o100000, dirent: 8 },
  directory: { mode: 0o040000, dirent: 4 },
  symlink: { mode: 0o120000, dirent: 10 },
} as const;
