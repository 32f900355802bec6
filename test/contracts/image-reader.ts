import * as fs from 'node:fs';
import * as path from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import type { ImageReference } from '../../src/image/image-reference.js';
import {
  diskContent,
  IMAGE_KINDS,
  loopDevices,
  overlay,
  qemuImg,
  qemuIo,
  temporaryDirectory,
  withLoopDevice,
  writeRaw,
} from '../support/images.js';
import { program, requireAll, root } from '../support/requirements.js';

/** Something that reads the disk in an image. */
export interface OpenDisk {
  readonly size: number;
  /** Fills `buffer` from `bufferOffset` with the disk's bytes [position, position + length), or throws. */
  read(position: number, length: number, buffer: Uint8Array, bufferOffset: number): void;
  close(): Promise<void>;
}

const GUARD = 0xa5;
const GUARD_LENGTH = 16;
const CHUNK_SIZES = [4096, 65536, 262144, 1_000_000];

/** Reads one range into the middle of a larger buffer and checks that nothing else of that was touched. */
function readGuarded(disk: OpenDisk, position: number, length: number): Buffer {
  const buffer = Buffer.alloc(length + 2 * GUARD_LENGTH, GUARD);
  disk.read(position, length, buffer, GUARD_LENGTH);
  const guard = Buffer.alloc(GUARD_LENGTH, GUARD);
  expect(buffer.subarray(0, GUARD_LENGTH).equals(guard)).toBe(true);
  expect(buffer.subarray(GUARD_LENGTH + length).equals(guard)).toBe(true);
  return buffer.subarray(GUARD_LENGTH, GUARD_LENGTH + length);
}

function expectRange(disk: OpenDisk, content: Buffer, position: number, length: number): void {
  const same = readGuarded(disk, position, length).equals(content.subarray(position, position + length));
  expect(same, `${length} bytes at ${position}`).toBe(true);
}

/** The disk in pieces of every chunk size, then ranges that begin and end a byte before, at and after round numbers. */
function expectContent(disk: OpenDisk, content: Buffer): void {
  expect(disk.size).toBe(content.length);
  for (const size of CHUNK_SIZES) {
    for (let position = 0; position < content.length; position += size) {
      expectRange(disk, content, position, Math.min(size, content.length - position));
    }
  }
  const edges = [0, 512, 4096, 65536, 200 * 1024, 1 << 20, 1_000_001, content.length].flatMap((edge) => [
    edge - 1,
    edge,
    edge + 1,
  ]);
  const positions = edges.filter((edge) => edge >= 0 && edge <= content.length);
  for (const from of positions) {
    for (const to of positions) if (to >= from) expectRange(disk, content, from, to - from);
  }
}

/**
 * What every reader of images has to do: give the same bytes as QEMU itself, for every kind of image, and for ranges of any alignment, and
 * touch no more of the buffer than asked for.
 */
export function imageReaderContract(name: string, open: (image: ImageReference) => Promise<OpenDisk>): void {
  describe(`image reader contract: ${name}`, () => {
    let directory: string;

    beforeAll(async () => {
      await requireAll(program('qemu-img', 'qemu-utils'), program('qemu-io', 'qemu-utils'));
      directory = temporaryDirectory();
    });
    afterAll(() => fs.rmSync(directory, { recursive: true }));

    async function expectSame(image: ImageReference): Promise<void> {
      const content = await diskContent(image);
      const disk = await open(image);
      try {
        expectContent(disk, content);
      } finally {
        await disk.close();
      }
    }

    it.each(IMAGE_KINDS)('$name', async ({ make }) => {
      const own = fs.mkdtempSync(path.join(directory, 'kind-'));
      await expectSame(await make(own));
      fs.rmSync(own, { recursive: true });
    });

    it('block devices: raw, qcow2 in one, and below an overlay', async () => {
      await requireAll(root, loopDevices, program('losetup', 'mount'));
      const raw = writeRaw(path.join(directory, 'device.raw'), 2 << 20);
      const inside = path.join(directory, 'device.qcow2');
      await qemuImg('convert', '-f', 'raw', '-O', 'qcow2', raw.path, inside);
      fs.truncateSync(inside, 4 << 20);
      await withLoopDevice(raw.path, async (device) => {
        await expectSame({ path: device, format: 'raw' });
        const top = await overlay(path.join(directory, 'on-device.qcow2'), { path: device, format: 'raw' });
        await qemuIo(top, 'write -P 0x42 300k 100k');
        await expectSame(top);
      });
      await withLoopDevice(inside, (device) => expectSame({ path: device, format: 'qcow2' }));
    });
  });
}
