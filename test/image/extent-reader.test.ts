import * as fs from 'node:fs';
import * as path from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import type { ExtentMap } from '../../src/image/extent-map.js';
import { ZERO_SOURCE } from '../../src/image/extent-map.js';
import { DiskReadError, ExtentReader } from '../../src/image/extent-reader.js';
import type { ImageReference } from '../../src/image/image-reference.js';
import { closeSources, openSources } from '../../src/image/sources.js';
import { isOpen } from '../support/descriptors.js';
import { noise, overlay, temporaryDirectory } from '../support/images.js';
import { program, requireAll } from '../support/requirements.js';
import { mapOf } from './extents.js';
import { inspect } from './open-image.js';

let directory: string;
beforeAll(async () => {
  await requireAll(program('qemu-img', 'qemu-utils'));
  directory = temporaryDirectory();
});
afterAll(() => fs.rmSync(directory, { recursive: true }));

function fileOf(name: string, size: number): ImageReference {
  const file = path.join(directory, name);
  fs.writeFileSync(file, noise(size, 7));
  return { path: file, format: 'raw' };
}

/** Opens the image as mapped, lets `use` do something to its files, closes. */
async function withReader(image: ImageReference, use: (reader: ExtentReader) => void): Promise<void> {
  const { extents, sources, virtualSize } = await inspect(image);
  const open = openSources(sources, virtualSize);
  try {
    use(new ExtentReader('vda', extents, open));
  } finally {
    closeSources(open);
  }
}

function readErrorOf(reader: ExtentReader, position: number, length: number): DiskReadError {
  try {
    reader.read(position, length, Buffer.alloc(length), 0);
  } catch (error) {
    if (error instanceof DiskReadError) return error;
    throw error;
  }
  throw new Error('nothing was thrown');
}

describe('a file that becomes shorter while it is open', () => {
  it.each([0, 1, 4096, 99_999, 100_000 - 512, 100_000 - 1])(
    'cut to %i of 100000 bytes: EIO from there on, never zeros',
    async (size) => {
      const image = fileOf('cut.raw', 100_000);
      await withReader(image, (reader) => {
        fs.truncateSync(image.path, size);
        const error = readErrorOf(reader, 0, reader.size);
        expect(error.code).toBe('EIO');
        expect(error.message).toContain('vda');
        expect(error.message).toContain(image.path);
        expect(error.details).toMatchObject({ disk: 'vda', path: image.path, position: size, offset: size });
        expect(readErrorOf(reader, 99_900, 200).code).toBe('EIO');
        const before = Buffer.alloc(size);
        reader.read(0, size, before, 0);
        expect(before.equals(noise(100_000, 7).subarray(0, size))).toBe(true);
      });
    },
  );

  it('a backing file', async () => {
    const base = fileOf('base.raw', 1 << 20);
    await withReader(await overlay(path.join(directory, 'top.qcow2'), base), (reader) => {
      fs.truncateSync(base.path, 1 << 19);
      expect(readErrorOf(reader, 0, 1 << 20).details).toMatchObject({ path: base.path, offset: 1 << 19 });
    });
  });

  it('between inspection and opening: refused', async () => {
    const image = fileOf('early.raw', 8192);
    const { sources, virtualSize } = await inspect(image);
    const whole = fileOf('whole.raw', 8192);
    const both = [...(await inspect(whole)).sources, ...sources];
    fs.truncateSync(image.path, 4096);
    expect(() => openSources(both, virtualSize)).toThrow(image.path);
    expect([image, whole].filter((file) => isOpen(file.path))).toEqual([]);
    fs.rmSync(image.path);
    expect(() => openSources(sources, virtualSize)).toThrow(image.path);
  });
});

describe('an odd-sized raw file', () => {
  it.each([1, 511, 513, 100_001])('of %i bytes is padded with zeros to its last sector', async (size) => {
    const image = fileOf('odd.raw', size);
    await withReader(image, (reader) => {
      const padded = Math.ceil(size / 512) * 512;
      expect(reader.size).toBe(padded);
      const expected = Buffer.concat([noise(size, 7), Buffer.alloc(padded - size)]);
      for (const from of [0, size - 1, size, padded - 1, padded]) {
        const buffer = Buffer.alloc(padded - from, 0xee);
        reader.read(from, padded - from, buffer, 0);
        expect(buffer.equals(expected.subarray(from)), `from ${from}`).toBe(true);
      }
    });
  });
});

describe('reading', () => {
  function reader(map: ExtentMap, fd: number): ExtentReader {
    return new ExtentReader('vda', map, [{ fd, path: 'source', size: 100 }]);
  }

  it('goes together from many extents, into shared memory too', () => {
    const file = fileOf('pieces', 100).path;
    const fd = fs.openSync(file, 'r');
    try {
      const content = fs.readFileSync(file);
      const map = mapOf([
        { length: 10, source: 0, offset: 50 },
        { length: 10, source: ZERO_SOURCE, offset: 0 },
        { length: 5, source: 0, offset: 95 },
        { length: 20, source: 0, offset: 0 },
      ]);
      const disk = Buffer.concat([
        content.subarray(50, 60),
        Buffer.alloc(10),
        content.subarray(95),
        content.subarray(0, 20),
      ]);
      const shared = new Uint8Array(new SharedArrayBuffer(64)).fill(0xee);
      for (let from = 0; from <= 45; from++) {
        for (let to = from; to <= 45; to++) {
          reader(map, fd).read(from, to - from, shared, 3);
          expect(Buffer.from(shared.slice(3, 3 + to - from)).equals(disk.subarray(from, to))).toBe(true);
        }
      }
    } finally {
      fs.closeSync(fd);
    }
  });

  it('refuses ranges outside of the disk or of the buffer', () => {
    const map = mapOf([{ length: 100, source: ZERO_SOURCE, offset: 0 }]);
    for (const [position, length, room, offset] of [
      [0, 101, 200, 0],
      [100, 1, 200, 0],
      [-1, 10, 200, 0],
      [0, 11, 10, 0],
      [0, 10, 10, 1],
      [Number.NaN, 10, 10, 0],
    ] as const) {
      expect(() => reader(map, -1).read(position, length, Buffer.alloc(room), offset)).toThrow(RangeError);
    }
    reader(map, -1).read(100, 0, Buffer.alloc(0), 0);
  });

  it('pads a file of 100 bytes to 512, and no further', () => {
    const fd = fs.openSync(fileOf('short', 100).path, 'r');
    try {
      const disk = reader(mapOf([{ length: 1024, source: 0, offset: 0 }]), fd);
      disk.read(0, 512, Buffer.alloc(512), 0);
      for (const [position, length] of [
        [0, 513],
        [511, 2],
        [512, 1],
        [600, 1],
      ] as const) {
        expect(readErrorOf(disk, position, length).code).toBe('EIO');
      }
    } finally {
      fs.closeSync(fd);
    }
  });

  it('names the system error when the file cannot be read', () => {
    const fd = fs.openSync(directory, 'r');
    try {
      const error = readErrorOf(reader(mapOf([{ length: 10, source: 0, offset: 0 }]), fd), 0, 10);
      expect(error.message).toContain('EISDIR');
    } finally {
      fs.closeSync(fd);
    }
  });
});
