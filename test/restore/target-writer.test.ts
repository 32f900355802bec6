import * as fs from 'node:fs';
import * as path from 'node:path';
import fc from 'fast-check';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { ChunkmountError } from '../../src/errors.js';
import { run } from '../../src/host/exec.js';
import { openDirect, TargetWriter } from '../../src/restore/target-writer.js';

const MIB = 1024 * 1024;

let directory: string;
beforeAll(() => {
  directory = fs.mkdtempSync('/var/tmp/cm-writer-');
});
afterAll(() => fs.rmSync(directory, { recursive: true, force: true }));

/** Opens a new file of zeros, lets `work` use it, and returns what it then holds. */
function written(size: number, work: (fd: number, directFd: number | undefined) => void): Buffer {
  const file = path.join(directory, 'target');
  fs.rmSync(file, { force: true });
  const fd = fs.openSync(file, 'wx+');
  fs.ftruncateSync(fd, size);
  const directFd = openDirect(fd);
  try {
    work(fd, directFd);
    return fs.readFileSync(file);
  } finally {
    if (directFd !== undefined) fs.closeSync(directFd);
    fs.closeSync(fd);
  }
}

/** Content that no other chunk has. */
function fill(buffer: Buffer, index: number, length: number): void {
  for (let at = 0; at + 4 <= length; at += 4) buffer.writeUInt32LE(index * 7919 + at, at);
}

/** Writes chunks of a disk of `size` bytes, the last of which may be short. */
function writeChunks(writer: TargetWriter, indexes: readonly number[], size: number, chunkSize: number) {
  for (const index of indexes) {
    const length = Math.min(chunkSize, size - index * chunkSize);
    fill(writer.place(index), index, length);
    writer.add(length);
  }
  writer.flush();
}

function expected(indexes: readonly number[], size: number, chunkSize: number): Buffer {
  const image = Buffer.alloc(size);
  for (const index of indexes) {
    const chunk = image.subarray(index * chunkSize, (index + 1) * chunkSize);
    fill(chunk, index, chunk.byteLength);
  }
  return image;
}

describe('chunks', () => {
  const cases = fc.record({
    chunkSize: fc.constantFrom(4096, 16384, 2 * MIB, 8 * MIB),
    count: fc.integer({ min: 1, max: 12 }),
    tail: fc.integer({ min: 4, max: 4096 }),
    direct: fc.boolean(),
    seed: fc.array(fc.nat(), { minLength: 1, maxLength: 12 }),
  });

  it('get to their places in any order, whatever the end of the disk is', () => {
    const check = fc.property(cases, ({ chunkSize, count, tail, direct, seed }) => {
      const size = (count - 1) * chunkSize + (tail & ~3);
      const indexes = [...new Set(seed.map((n) => n % count))];
      const image = written(size, (fd, directFd) => {
        expect(directFd).toBeDefined();
        const target = { fd, directFd: direct ? directFd : undefined, name: 'target' };
        writeChunks(new TargetWriter(target, chunkSize), indexes, size, chunkSize);
      });
      expect(image.equals(expected(indexes, size, chunkSize))).toBe(true);
    });
    fc.assert(check, { numRuns: 60 });
  });

  it('are not kept in the page cache', async () => {
    const [size, chunkSize] = [32 * MIB, 256 * 1024];
    const indexes = Array.from({ length: size / chunkSize }, (_, i) => i);
    const cached = async (direct: boolean) => {
      const file = path.join(directory, `cached-${direct}`);
      const fd = fs.openSync(file, 'wx+');
      fs.ftruncateSync(fd, size);
      const directFd = direct ? openDirect(fd) : undefined;
      writeChunks(new TargetWriter({ fd, directFd, name: file }, chunkSize), indexes, size, chunkSize);
      const { stdout } = await run('fincore', ['--bytes', '--noheadings', '--output=RES', file]);
      return Number(stdout.trim());
    };
    expect(await cached(false)).toBe(size);
    expect(await cached(true)).toBe(0);
  });

  it('are written through the page cache where O_DIRECT turns out not to work', () => {
    // The kernel takes numbers there, and answers everything else with EINVAL.
    const refusing = fs.openSync('/proc/self/coredump_filter', 'r+');
    try {
      const image = written(MIB, (fd) => {
        const writer = new TargetWriter({ fd, directFd: refusing, name: 'target' }, 4096);
        writeChunks(writer, [1, 2, 7], MIB, 4096);
      });
      expect(image.equals(expected([1, 2, 7], MIB, 4096))).toBe(true);
    } finally {
      fs.closeSync(refusing);
    }
  });
});

it('says where a full device could not be written', () => {
  const full = fs.openSync('/dev/full', 'r+');
  try {
    const writer = new TargetWriter({ fd: full, directFd: undefined, name: '/dev/full' }, 4096);
    writer.place(3);
    writer.add(4096);
    const check = expect(() => writer.flush());
    check.toThrow(ChunkmountError);
    check.toThrow('/dev/full cannot be written at 12288');
  } finally {
    fs.closeSync(full);
  }
});
