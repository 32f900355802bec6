import * as fs from 'node:fs';
import { LRUCache } from 'lru-cache';
import { ChunkSource, type SharedSource } from './chunk-source.js';
import { readFully } from './full-io.js';

/** Chunk files that one thread keeps open. */
const MAX_DESCRIPTORS = 256;

/** In `verified`: the chunk's content has been compared with its sum since the mount began. */
const GOOD = 1;

/** What every thread needs to read a disk of a tree as one image. */
export interface SharedImage {
  readonly source: SharedSource;
  /** One byte a chunk, shared by all threads; undefined: nothing is compared with the sums. */
  readonly verified: Uint8Array | undefined;
}

/** Reads a disk of a tree at any position, for one thread. A chunk is compared with its sum when it is first read. */
export class ImageReader {
  readonly #descriptors = new LRUCache<number, { readonly fd: number }>({
    max: MAX_DESCRIPTORS,
    dispose: ({ fd }) => fs.closeSync(fd),
  });
  readonly #buffer: Buffer;

  private constructor(
    private readonly source: ChunkSource,
    private readonly verified: Uint8Array | undefined,
  ) {
    this.#buffer = source.buffer();
  }

  static async fromShared({ source, verified }: SharedImage): Promise<ImageReader> {
    return new ImageReader(await ChunkSource.create(source), verified);
  }

  /** Bytes. */
  get size(): number {
    return this.source.disk.size;
  }

  get chunkSize(): number {
    return this.source.disk.chunkSize;
  }

  /** Whether the sums say that the chunk is all zeros. */
  isHole(chunk: number): boolean {
    return this.source.isZero(chunk);
  }

  /**
   * Puts up to `length` bytes from `position` into `into` at `at`; fewer only at the end of the disk. Returns how many. Throws
   * DamageError.
   */
  read(position: number, length: number, into: Uint8Array, at: number): number {
    const end = Math.min(position + length, this.size);
    let done = 0;
    while (position + done < end) {
      const chunk = Math.floor((position + done) / this.chunkSize);
      const offset = position + done - chunk * this.chunkSize;
      const count = Math.min(this.source.lengthOf(chunk) - offset, end - position - done);
      this.#readChunk(chunk, offset, count, into, at + done);
      done += count;
    }
    return done;
  }

  #readChunk(chunk: number, offset: number, count: number, into: Uint8Array, at: number): void {
    if (this.verified === undefined || Atomics.load(this.verified, chunk) === GOOD) {
      this.#readPiece(chunk, offset, count, into, at);
      return;
    }
    const length = this.source.read(chunk, this.#buffer);
    this.source.check(chunk, this.#buffer, length);
    Atomics.store(this.verified, chunk, GOOD);
    into.set(this.#buffer.subarray(offset, offset + count), at);
  }

  #readPiece(chunk: number, offset: number, count: number, into: Uint8Array, at: number): void {
    let open = this.#descriptors.get(chunk);
    if (open === undefined) {
      open = { fd: this.source.openChunk(chunk) };
      this.#descriptors.set(chunk, open);
    }
    const target = into.subarray(at, at + count);
    const got = readFully(open.fd, target, count, offset);
    if (got !== count) throw this.source.cutOff(chunk, offset + got);
  }
}
