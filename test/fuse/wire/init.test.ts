import { describe, expect, it } from 'vitest';
import { answerInit } from '../../../src/fuse/wire/init.js';
import { Reply } from '../../../src/fuse/wire/reply.js';
import { Request } from '../../../src/fuse/wire/request.js';
import {
  decode,
  encode,
  type Fields,
  IN_HEADER,
  INIT_IN,
  INIT_OUT,
  type Layout,
  lengthOf,
  OLD_INIT_IN,
  OUT_HEADER,
  zeros,
} from './layouts.js';

/** The flags that Linux offers and we want, as include/uapi/linux/fuse.h numbers them. */
const WANTED =
  (1 << 0) | // ASYNC_READ
  (1 << 4) | // EXPORT_SUPPORT
  (1 << 13) | // DO_READDIRPLUS
  (1 << 15) | // ASYNC_DIO
  (1 << 18) | // PARALLEL_DIROPS
  (1 << 21) | // ABORT_ERROR
  (1 << 22) | // MAX_PAGES
  (1 << 23) | // CACHE_SYMLINKS
  (1 << 25) | // EXPLICIT_INVAL_DATA
  (1 << 30); // INIT_EXT
/** DIRECT_IO_ALLOW_MMAP, bit 36. */
const WANTED2 = 1 << 4;

function answer(layout: Layout, fields: Fields): { header: Fields; out: Fields } {
  const payload = encode(layout, fields);
  const len = lengthOf(IN_HEADER) + payload.length;
  const header = encode(IN_HEADER, { len, opcode: 26, unique: 2n ** 60n + 1n });
  // Rubbish after the request: what an earlier one left in the buffer.
  const request = new Request(Buffer.concat([header, payload, Buffer.alloc(200, 0xff)]));
  expect(request.parse(len)).toBe(true);
  const reply = new Reply(Buffer.alloc(256, 0xee));
  expect(answerInit(request, reply)).toBe(80);
  expect(reply.bytes[80]).toBe(0xee);
  return { header: decode(reply.bytes, OUT_HEADER), out: decode(reply.bytes, INIT_OUT, 16) };
}

const COMMON = {
  major: 7,
  max_background: 64,
  congestion_threshold: 48,
  max_write: 4096,
  time_gran: 1,
  max_pages: 256,
};

describe('INIT', () => {
  it('has structures of the known lengths', () => {
    expect([OLD_INIT_IN, INIT_IN, INIT_OUT].map(lengthOf)).toEqual([16, 64, 64]);
  });

  it('of 56 bytes, as Linux 5.10 sends it', () => {
    const { header, out } = answer(OLD_INIT_IN, {
      major: 7,
      minor: 32,
      max_readahead: 131072,
      flags: 0x3fffffff,
    });
    expect(header).toEqual({ len: 80, error: 0, unique: 2n ** 60n + 1n });
    expect(out).toEqual(
      zeros(INIT_OUT, { ...COMMON, minor: 32, max_readahead: 131072, flags: WANTED & 0x3fffffff }),
    );
  });

  it('of 104 bytes, as Linux 5.17 and newer send it', () => {
    const { out } = answer(INIT_IN, {
      major: 7,
      minor: 45,
      max_readahead: 262144,
      flags: 0xffffffff,
      flags2: 0xffffffff,
    });
    expect(out).toEqual(
      zeros(INIT_OUT, {
        ...COMMON,
        minor: 45,
        max_readahead: 262144,
        flags: WANTED,
        flags2: WANTED2,
      }),
    );
  });

  it('takes nothing that was not offered', () => {
    const { out } = answer(INIT_IN, { major: 7, minor: 38, flags: 1 << 22, flags2: 0 });
    expect(out).toMatchObject({ flags: 1 << 22, flags2: 0 });
    expect(answer(INIT_IN, { major: 7, minor: 38 }).out).toMatchObject({ flags: 0, flags2: 0 });
  });

  it('never asks for what would break a frozen tree', () => {
    const { out } = answer(INIT_IN, { major: 7, minor: 45, flags: 0xffffffff, flags2: 0xffffffff });
    // POSIX_LOCKS 1, AUTO_INVAL_DATA 12, READDIRPLUS_AUTO 14, WRITEBACK_CACHE 16, NO_OPEN_SUPPORT 17, NO_OPENDIR_SUPPORT 24.
    for (const bit of [1, 12, 14, 16, 17, 24]) expect(Number(out.flags) & (1 << bit)).toBe(0);
  });

  it('does not claim to be newer than we are', () => {
    const { out } = answer(INIT_IN, { major: 7, minor: 99, flags: 0 });
    expect(out).toMatchObject({ major: 7, minor: 45 });
  });

  it('answers a newer major with ours, so that the kernel asks again', () => {
    expect(answer(INIT_IN, { major: 8, minor: 0, flags: 0 }).out).toMatchObject({ major: 7 });
  });
});
