import { InitFlag, MAJOR, MINOR, OUT_HEADER_LENGTH } from './protocol.js';
import type { Reply } from './reply.js';
import type { Request } from './request.js';

/** struct fuse_init_out since 7.23. */
const INIT_OUT_LENGTH = 64;
/** Kernel pages a request may carry: 1 MiB, the most that any kernel grants without a sysctl. */
const MAX_PAGES = 256;
export const MAX_READ = MAX_PAGES * 4096;
/** We take no writes; the kernel wants 4096 at least. */
const MAX_WRITE = 4096;
const MAX_BACKGROUND = 64;

const WANTED: readonly number[] = Object.values(InitFlag);

/**
 * Answers INIT (struct fuse_init_in: major, minor, max_readahead, flags, and since 7.36 flags2). A kernel with a newer
 * major asks again with ours. Returns the reply's length.
 */
export function answerInit(request: Request, reply: Reply): number {
  const minor = request.uint32(44);
  const offered = request.uint32(52);
  const offered2 = request.has(20) ? request.uint32(56) : 0;
  let flags = 0;
  let flags2 = 0;
  for (const bit of WANTED) {
    if (bit < 32) flags |= offered & (1 << bit);
    else flags2 |= offered2 & (1 << (bit - 32));
  }
  reply.bytes.fill(0, OUT_HEADER_LENGTH, OUT_HEADER_LENGTH + INIT_OUT_LENGTH);
  reply.uint32(16, MAJOR);
  reply.uint32(20, Math.min(minor, MINOR));
  reply.uint32(24, request.uint32(48));
  reply.uint32(28, flags >>> 0);
  reply.view.setUint16(32, MAX_BACKGROUND, true);
  reply.view.setUint16(34, Math.floor((MAX_BACKGROUND * 3) / 4), true);
  reply.uint32(36, MAX_WRITE);
  reply.uint32(40, 1);
  reply.view.setUint16(44, MAX_PAGES, true);
  reply.uint32(48, flags2 >>> 0);
  return reply.header(request, INIT_OUT_LENGTH);
}
