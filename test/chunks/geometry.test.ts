import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import {
  CHUNKS_PER_DIRECTORY,
  chunkLength,
  chunksInDirectory,
  DEFAULT_CHUNK_SIZE,
  directoryCount,
  geometry,
  isChunkSize,
  MAX_CHUNK_COUNT,
  MAX_CHUNK_SIZE,
  MIN_CHUNK_SIZE,
} from '../../src/chunks/geometry.js';
import { ChunkmountError } from '../../src/errors.js';

const KIB = 1024;

describe('isChunkSize', () => {
  it('takes the powers of two from 4 KiB to 16 MiB', () => {
    const sizes = [];
    for (let size = 1; size <= 2 ** 40; size *= 2) if (isChunkSize(size)) sizes.push(size);
    expect(sizes).toEqual(Array.from({ length: 13 }, (_, i) => 4 * KIB * 2 ** i));
    expect([sizes[0], sizes.at(-1)]).toEqual([MIN_CHUNK_SIZE, MAX_CHUNK_SIZE]);
    expect(isChunkSize(DEFAULT_CHUNK_SIZE)).toBe(true);
  });

  it.each([0, -4096, 4095, 4097, 6144, 300 * KIB, 16 * KIB * KIB + 1, 4096.5, Number.NaN, Infinity])(
    'does not take %d',
    (size) => {
      expect(isChunkSize(size)).toBe(false);
    },
  );
});

describe('geometry', () => {
  const size = 64 * KIB;

  it.each([
    [0, 0, 0],
    [1, 1, 1],
    [size - 1, 1, size - 1],
    [size, 1, size],
    [size + 1, 2, 1],
    [2 * size + 500, 3, 500],
  ])('cuts a disk of %i bytes into %i chunks, the last one of %i', (bytes, count, last) => {
    const disk = geometry(bytes, size);
    expect(disk).toEqual({ size: bytes, chunkSize: size, chunkCount: count });
    if (count > 0) expect(chunkLength(disk, count - 1)).toBe(last);
    if (count > 1) expect(chunkLength(disk, 0)).toBe(size);
  });

  it.each([
    [0, 0],
    [1, 1],
    [CHUNKS_PER_DIRECTORY - 1, 1],
    [CHUNKS_PER_DIRECTORY, 1],
    [CHUNKS_PER_DIRECTORY + 1, 2],
    [2 * CHUNKS_PER_DIRECTORY, 2],
  ])('puts %i chunks into %i directories', (chunks, directories) => {
    const disk = geometry(chunks * size, size);
    expect(directoryCount(disk)).toBe(directories);
    const held = Array.from({ length: directories }, (_, i) => chunksInDirectory(disk, i));
    expect(held.reduce((sum, count) => sum + count, 0)).toBe(chunks);
    expect(held.slice(0, -1).every((count) => count === CHUNKS_PER_DIRECTORY)).toBe(true);
  });

  it('lets chunks cover any disk exactly', () => {
    const anySize = fc.integer({ min: 0, max: 20 }).map((power) => 4 * KIB * 2 ** (power % 13));
    fc.assert(
      fc.property(fc.integer({ min: 0, max: 2 ** 30 }), anySize, (bytes, chunkSize) => {
        const disk = geometry(bytes, chunkSize);
        const last = disk.chunkCount - 1;
        const covered = last < 0 ? 0 : last * chunkSize + chunkLength(disk, last);
        expect(covered).toBe(bytes);
        if (last >= 0) expect(chunkLength(disk, last)).toBeGreaterThan(0);
      }),
    );
  });

  it('allows 2^32 chunks and not one more', () => {
    const most = MAX_CHUNK_COUNT * MIN_CHUNK_SIZE;
    expect(geometry(most, MIN_CHUNK_SIZE).chunkCount).toBe(2 ** 32);
    expect(refusal(() => geometry(most + 1, MIN_CHUNK_SIZE))).toMatchObject({
      kind: 'usage',
      message: `a disk of ${most + 1} bytes has too many chunks of 4096 bytes`,
      hint: 'give a larger --chunk-size',
    });
  });

  it('refuses a chunk size that is none', () => {
    expect(refusal(() => geometry(1, 5000))).toMatchObject({
      kind: 'usage',
      message: 'a chunk size of 5000 bytes is not possible',
    });
  });
});

function refusal(action: () => unknown): ChunkmountError {
  try {
    action();
  } catch (error) {
    expect(error).toBeInstanceOf(ChunkmountError);
    return error as ChunkmountError;
  }
  throw new Error('not refused');
}
