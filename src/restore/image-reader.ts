import * as fs from 'node:fs';
import { LRUCache } from 'lru-cache';
import { MAX_CHUNK_COUNT } from '../chunks/geometry.js';
import { pageBuffer } from '../host/page-buffer.js';
import { ChunkSource, type SharedSource } from './chunk-source.js';
import { readFully } from './full-io.js';

/** Chunk files that one thread keeps open, of all disks together: a process may have 1024 descriptors on many systems. */
const MAX_DESCRIPTORS = 256;

/** In `verified`: the chunk's content has been compared with its sum since the mount began. */
const GOOD = 1;

/** What every thread needs to read a disk of a tree as one image. */
export interface SharedImage {
  readonly source: SharedSource;
  /** One byte a chunk, shared by all threads; undefined: nothing is compared with the sums. */
  readonly verified: Uint8Array | undefined;
}

/** What all images that one thread reads have in common. */
class ThreadResources {
  readonly descriptors = new LRUCache<number, { readonly fd: number }>({
    max: MAX_DESCRIPTORS,
    dispose: ({ fd }) => fs.closeSync(fd),
  });

  /** Large enough for a chunk of any of the disks. */
  constructor(readonly buffer: Buffer) {}
}

/** Reads a disk of a tree at any position, for one thread. A chunk is compared with its sum when it is first read. */
export class ImageReader {
  private constructor(
    private readonly source: ChunkSource,
    private readonly verified: Uint8Array | undefined,
    private readonly resources: ThreadResources,
    /** Key of the first chunk's descriptor. */
    private readonly firstKey: number,
  ) {}

  /** Readers of several images for this thread. */
  static async forThread(images: readonly SharedImage[]): Promise<ImageReader[]> {
    const sources = await Promise.all(images.map(({ source }) => ChunkSource.create(source)));
    const resources = new ThreadResources(
      pageBuffer(Math.max(...sources.map((source) => source.disk.chunkSize))),
    );
    return sources.map(
      (source, position) =>
        new ImageReader(source, images[position]!.verified, resources, position * MAX_CHUNK_COUNT),
    );
  }

  /** Bytes. */
  get size(): number {
    return this.source.disk.size;
  }

  get chunkSize(): number {
    return this.source.disk.chunkSize;
  }

  /**
   * Whether readers may skip the chunk: the sums say that it is all zeros, and reading it would fail if it were not. Where
   * nothing is compared with the sums, nothing is a hole: a copy that skips holes shows what is there, too.
   */
  isHole(chunk: number): boolean {
    return this.verified !== undefined && this.source.isZero(chunk);
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
    if (this.source.isSkipped(chunk)) {
      into.fill(0, at, at + count);
      return;
    }
    if (this.verified === undefined || Atomics.load(this.verified, chunk) === GOOD) {
      this.#readPiece(chunk, offset, count, into, at);
      return;
    }
    if (count === this.source.lengthOf(chunk)) {
      this.source.read(chunk, into, at);
    } else {
      const { buffer } = this.resources;
      this.source.read(chunk, buffer);
      into.set(buffer.subarray(offset, offset + count), at);
    }
    Atomics.store(this.verified, chunk, GOOD);
  }

  #readPiece(chunk: number, offset: number, count: number, into: Uint8Array, at: number): void {
    const { descriptors } = this.resources;
    const key = this.firstKey + chunk;
    let open = descriptors.get(key);
    if (open === undefined) {
      open = { fd: this.source.openChunk(chunk) };
      descriptors.set(key, open);
    }
    let got: number;
    try {
      got = readFully(open.fd, into.subarray(at, at + count), count, offset);
    } catch (error) {
      // On a network file system a fresh descriptor may do where an old one is stale.
      descriptors.delete(key);
      throw this.source.unreadable(chunk, error);
    }
    if (got !== count) throw this.source.cutOff(chunk, offset + got);
  }
}
