import * as fs from 'node:fs';
import { ChunkmountError, systemCode } from '../errors.js';
import { type ExtentMap, ZERO_SOURCE } from './extent-map.js';

/** An open file that holds extents. Plain data: workers share the descriptor of the thread that opened it. */
export interface ReaderSource {
  readonly fd: number;
  /** For messages. */
  readonly path: string;
  /** Bytes in the file when its extents were mapped; 0 for a block device. */
  readonly size: number;
}

/** Part of a disk could not be read. `code` is what a file system answers. */
export class DiskReadError extends ChunkmountError {
  readonly code = 'EIO';

  constructor(
    disk: string,
    position: number,
    source: ReaderSource,
    offset: number,
    why: string,
    cause?: unknown,
  ) {
    super('failed', `disk ${disk} cannot be read at ${position}: ${source.path}, offset ${offset}: ${why}`, {
      hint: 'if the image was changed or cut while it was read, begin a new session; else look at dmesg for disk errors',
      details: { disk, position, path: source.path, offset },
      cause,
    });
  }
}

/** QEMU rounds the size of an odd-sized raw file up to this, and reads zeros there. */
const SECTOR = 512;

/** Reads a disk's bytes by its extent map, synchronously. Each thread has its own; maps and descriptors are shared. */
export class ExtentReader {
  readonly size: number;
  readonly #map: ExtentMap;
  readonly #sources: readonly ReaderSource[];
  readonly #disk: string;

  /** `disk` is the name for messages; `sources` are in the order of the map's source numbers and stay open. */
  constructor(disk: string, map: ExtentMap, sources: readonly ReaderSource[]) {
    this.size = map.size;
    this.#disk = disk;
    this.#map = map;
    this.#sources = sources;
  }

  /**
   * Puts the disk's bytes [position, position + length), which must lie within the disk, into `buffer` from `bufferOffset`. All of
   * them or DiskReadError.
   */
  read(position: number, length: number, buffer: Uint8Array, bufferOffset: number): void {
    if (length === 0) return;
    const map = this.#map;
    const end = position + length;
    if (!(end <= this.size && bufferOffset + length <= buffer.byteLength)) {
      throw new RangeError(
        `no ${length} bytes at ${position} of a disk of ${this.size} into ${bufferOffset} of ${buffer.byteLength}`,
      );
    }
    let extent = map.find(position);
    let at = position;
    while (at < end) {
      const stop = Math.min(end, map.endOf(extent));
      const target = bufferOffset + (at - position);
      const source = map.sourceOf(extent);
      if (source === ZERO_SOURCE) buffer.fill(0, target, target + (stop - at));
      else
        this.#readSource(
          source,
          map.offsetOf(extent) + (at - map.startOf(extent)),
          at,
          stop - at,
          buffer,
          target,
        );
      at = stop;
      extent++;
    }
  }

  #readSource(
    number: number,
    offset: number,
    position: number,
    length: number,
    buffer: Uint8Array,
    target: number,
  ): void {
    const source = this.#sources[number];
    if (source === undefined) throw new RangeError(`disk ${this.#disk} has no source ${number}`);
    let done = 0;
    while (done < length) {
      const count = this.#pread(source, buffer, target + done, length - done, offset + done, position + done);
      if (count === 0) {
        this.#pad(source, offset + done, position + done, length - done, buffer, target + done);
        return;
      }
      done += count;
    }
  }

  #pread(
    source: ReaderSource,
    buffer: Uint8Array,
    target: number,
    length: number,
    offset: number,
    position: number,
  ): number {
    for (;;) {
      try {
        return fs.readSync(source.fd, buffer, target, length, offset);
      } catch (error) {
        const code = systemCode(error);
        if (code === undefined) throw error;
        if (code !== 'EINTR') throw new DiskReadError(this.#disk, position, source, offset, code, error);
      }
    }
  }

  /** The file ended at `offset`. That is right only at the odd end it had from the beginning. */
  #pad(
    source: ReaderSource,
    offset: number,
    position: number,
    missing: number,
    buffer: Uint8Array,
    target: number,
  ): void {
    const sectorEnd = Math.ceil(source.size / SECTOR) * SECTOR;
    if (offset !== source.size || offset + missing > sectorEnd) {
      throw new DiskReadError(
        this.#disk,
        position,
        source,
        offset,
        `the file ends ${missing} bytes too early`,
      );
    }
    buffer.fill(0, target, target + missing);
  }
}
