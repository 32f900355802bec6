import * as fs from 'node:fs';
import { constants } from 'node:os';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { Opcode } from '../../../src/fuse/wire/protocol.js';
import { Exchange, fields, named } from '../exchange.js';
import {
  CHUNK,
  contentOf,
  MANIFEST_INODE,
  noise,
  SAMPLE_VDA,
  SAMPLE_VDB,
  SampleTrees,
} from '../sample-tree.js';
import {
  ENTRY_OUT,
  encode,
  INIT_IN,
  OPEN_IN,
  OPEN_OUT,
  READ_IN,
  STATFS_OUT,
  zeros,
} from '../wire/layouts.js';

const { EINVAL, EIO, ENOSYS, EROFS, ENOTTY } = constants.errno;

const trees = new SampleTrees();
let exchange: Exchange;

beforeAll(async () => {
  exchange = await Exchange.of(trees.tree({ vda: SAMPLE_VDA, vdb: SAMPLE_VDB }));
});
afterAll(() => trees.remove());

describe('other requests', () => {
  const openOf = async (directIo: boolean) => {
    const other = await Exchange.of(trees.tree({ vdz: SAMPLE_VDA }), directIo);
    return fields(other.ask(Opcode.OPEN, MANIFEST_INODE, encode(OPEN_IN, {})), OPEN_OUT);
  };

  it('OPEN keeps the cache and does without FLUSH', async () => {
    expect(await openOf(false)).toEqual({ fh: 0n, open_flags: (1 << 1) | (1 << 5), backing_id: 0 });
  });

  it('OPEN passes the cache by if told so', async () => {
    expect(await openOf(true)).toEqual({ fh: 0n, open_flags: (1 << 0) | (1 << 5), backing_id: 0 });
  });

  it('STATFS tells the size of the disks', () => {
    const bytes = contentOf(SAMPLE_VDA).length + contentOf(SAMPLE_VDB).length;
    expect(fields(exchange.ask(Opcode.STATFS, 1), STATFS_OUT)).toEqual(
      zeros(STATFS_OUT, {
        blocks: Math.ceil(bytes / 4096),
        // Root, 2 files at the top; 2 sums, 2 disks, 3 chunk directories, 4 + 257 chunks.
        files: 1 + 2 + 2 + 2 + 3 + 261,
        bsize: 4096,
        namelen: 255,
        frsize: 4096,
      }),
    );
  });

  it('INIT is answered', () => {
    expect(exchange.ask(Opcode.INIT, 0, encode(INIT_IN, { major: 7, minor: 45 }))!.payload).toHaveLength(64);
  });

  it.each(['RELEASE', 'RELEASEDIR', 'DESTROY'] as const)('%s succeeds', (name) => {
    expect(exchange.ask(Opcode[name], 1)).toEqual({ error: 0, payload: Buffer.alloc(0) });
  });

  it.each(['FORGET', 'BATCH_FORGET'] as const)('%s gets no reply', (name) => {
    expect(exchange.ask(Opcode[name], 1, Buffer.alloc(8))).toBeUndefined();
  });

  it.each([
    'SETATTR',
    'SYMLINK',
    'MKNOD',
    'MKDIR',
    'UNLINK',
    'RMDIR',
    'RENAME',
    'LINK',
    'WRITE',
    'SETXATTR',
    'REMOVEXATTR',
    'CREATE',
    'FALLOCATE',
    'RENAME2',
    'COPY_FILE_RANGE',
    'TMPFILE',
  ] as const)('%s is refused: it writes', (name) => {
    expect(exchange.ask(Opcode[name], 1, Buffer.alloc(64))!.error).toBe(-EROFS);
  });

  it.each([
    'FLUSH',
    'FSYNC',
    'FSYNCDIR',
    'OPENDIR',
    'ACCESS',
    'INTERRUPT',
    'BMAP',
    'POLL',
    'STATX',
    'SETUPMAPPING',
  ] as const)('%s is not there, so that the kernel does without', (name) => {
    expect(exchange.ask(Opcode[name], 1, Buffer.alloc(64))!.error).toBe(-ENOSYS);
  });

  it('IOCTL and READLINK say what they say on ordinary files', () => {
    expect(exchange.ask(Opcode.IOCTL, MANIFEST_INODE, Buffer.alloc(32))!.error).toBe(-ENOTTY);
    expect(exchange.ask(Opcode.READLINK, MANIFEST_INODE)!.error).toBe(-EINVAL);
  });

  it.each([0, 7, 31, 33, 41, 49, 50, 53, 1000, 4096, 2 ** 31, 2 ** 32 - 1])(
    'opcode %i is not known',
    (opcode) => {
      expect(exchange.ask(opcode, 1, Buffer.alloc(64))!.error).toBe(-ENOSYS);
    },
  );
});

describe('the counters', () => {
  it('tell requests, stats, reads, bytes, chunks and I/O errors apart', async () => {
    const other = await Exchange.of(trees.tree({ vdc: [noise(3 * CHUNK)] }));
    const inode = fields(other.ask(Opcode.LOOKUP, 1, named('vdc')), ENTRY_OUT).nodeid as bigint;
    const directory = fields(other.ask(Opcode.LOOKUP, inode, named('000000')), ENTRY_OUT).nodeid as bigint;
    const chunk = fields(other.ask(Opcode.LOOKUP, directory, named('00000001')), ENTRY_OUT).nodeid as bigint;
    other.ask(Opcode.READ, chunk, encode(READ_IN, { size: 100 }));
    other.ask(Opcode.READ, chunk, encode(READ_IN, { offset: 100n, size: 50 }));
    other.ask(Opcode.READ, chunk, encode(READ_IN, { size: 50 }));
    const sums = fields(other.ask(Opcode.LOOKUP, 1, named('vdc.xxh64')), ENTRY_OUT).nodeid as bigint;
    other.ask(Opcode.READ, sums, encode(READ_IN, { size: 1 }));
    other.ask(Opcode.LOOKUP, 1, named('unknown'));
    const counted = { requests: 9, stats: 5, reads: 4, bytesRead: 201, ioErrors: 0, chunksRead: 1 };
    expect(other.counters()).toEqual(counted);

    fs.truncateSync(trees.image('vdc'), CHUNK);
    const failing = other.ask(Opcode.READ, chunk, encode(READ_IN, { size: 100 }));
    expect(failing!.error).toBe(-EIO);
    // A request without a reply leaves the one before in the buffer.
    other.ask(Opcode.FORGET, chunk, Buffer.alloc(8));
    expect(other.counters()).toEqual({ ...counted, requests: 11, ioErrors: 1 });
  });

  it('take for stats what listings tell beside the names, of each listing anew', async () => {
    const other = await Exchange.of(trees.tree({ vdd: [noise(3 * CHUNK)] }));
    const directory = other.node('vdd/000000');
    const before = other.counters().stats!;
    const list = () => other.ask(Opcode.READDIRPLUS, directory, encode(READ_IN, { size: 4096 }));
    list();
    expect(other.counters().stats).toBe(before + 3);
    list();
    expect(other.counters().stats).toBe(before + 6);
  });
});
