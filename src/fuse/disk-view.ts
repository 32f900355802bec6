import type { ChunkHasher } from '../chunks/chunk-hash.js';
import { CHUNKS_PER_DIRECTORY, chunkLength, chunksInDirectory, directoryCount } from '../chunks/geometry.js';
import { type Layout, layoutOf, subdirectories } from '../chunks/layout.js';
import { formatHash } from '../chunks/paths.js';
import { SumsLines, sumsLineLength } from '../chunks/sums-line.js';
import { DirectoryTimes } from '../content-index/directory-times.js';
import { StoredIndex } from '../content-index/index-file.js';
import { Resolver } from '../content-index/resolver.js';
import { LOST, UNREADABLE, ZERO } from '../content-index/rows.js';
import { ExtentMap } from '../image/extent-map.js';
import { ExtentReader } from '../image/extent-reader.js';
import type { TreeDisk } from './chunk-tree.js';
import { EIO } from './errno.js';

/** Large enough for any sums line: targets have at most 16 characters. */
const SECTOR = 512;

/** One disk of a tree as one thread sees it. */
export class DiskView {
  readonly sumsSize: number;
  readonly directoryCount: number;
  readonly layout: Layout;
  /** Chunks of zeros are not in the tree. */
  readonly skipsZeros: boolean;
  readonly resolver: Resolver;
  readonly #reader: ExtentReader;
  readonly #lineLength: number;
  readonly #lines: SumsLines;
  /** Undefined: the times of the chunk directories are final. */
  readonly #directoryTimes: DirectoryTimes | undefined;

  constructor(
    readonly disk: TreeDisk,
    hasher: ChunkHasher,
  ) {
    const stored =
      disk.stored === undefined ? undefined : StoredIndex.attach(disk.stored.fd, disk.stored.header);
    const extents = new ExtentMap(disk.extents);
    this.#reader = new ExtentReader(disk.target, extents, disk.sources);
    this.resolver = new Resolver(
      disk.geometry,
      disk.rows,
      this.#reader,
      extents,
      hasher,
      disk.times,
      stored,
      disk.keep,
      disk.changeLog,
    );
    this.layout = layoutOf(disk.layout);
    this.skipsZeros = disk.skipZeros;
    this.#directoryTimes = directoryTimes(disk, hasher);
    this.#lineLength = sumsLineLength(disk);
    this.#lines = new SumsLines(disk);
    this.sumsSize = this.#lineLength * disk.geometry.chunkCount;
    this.directoryCount = directoryCount(disk.geometry);
  }

  get target(): string {
    return this.disk.target;
  }

  /** mtime of the sums file. Waits until it is known whether the tracker is believed that says that nothing changed. */
  get sumsMtime(): number {
    const { sumsMtime, unchangedSumsMtime } = this.disk;
    return unchangedSumsMtime !== undefined && this.resolver.audit.passed() ? unchangedSumsMtime : sumsMtime;
  }

  hasChunk(chunk: number): boolean {
    return chunk < this.disk.geometry.chunkCount;
  }

  /** Whether a chunk of this disk has no file. Only where zeros are skipped does anybody have to wait for the answer. */
  isSkipped(chunk: number): boolean {
    return this.skipsZeros && this.resolver.resolve(chunk) === ZERO;
  }

  /** mtime of a chunk directory. */
  directoryMtimeOf(directory: number): number {
    const times = this.#directoryTimes;
    if (times === undefined) return this.disk.directoryMtimes[directory]!;
    const first = this.firstChunkOf(directory);
    for (let i = 0; i < this.chunksIn(directory); i++) this.resolver.resolve(first + i);
    return times.update(directory);
  }

  /** How many directories of a rank the disk has. */
  directoriesOf(rank: number): number {
    return rank === 0 ? this.directoryCount : directoryCount(this.disk.geometry, rank);
  }

  /** The directories that one of a rank above 0 holds: from `first` up to `end`. */
  subdirectories(rank: number, number: number): { first: number; end: number } {
    return subdirectories(this.layout, this.disk.geometry, rank, number);
  }

  chunksIn(directory: number): number {
    return chunksInDirectory(this.disk.geometry, directory);
  }

  firstChunkOf(directory: number): number {
    return directory * CHUNKS_PER_DIRECTORY;
  }

  lengthOf(chunk: number): number {
    return chunkLength(this.disk.geometry, chunk);
  }

  /** st_blocks of a chunk whose state is known. 0 only if it is all zeros: `tar --sparse` stores nothing then. */
  blocksOf(chunk: number, state: number): number {
    return state === ZERO ? 0 : Math.ceil(this.lengthOf(chunk) / SECTOR);
  }

  mtimeOf(chunk: number): number {
    return this.disk.rows.mtimes[chunk]!;
  }

  /** 16 hex digits, or a negative error number. */
  hashOf(chunk: number): string | number {
    if (this.resolver.resolve(chunk) === UNREADABLE) return EIO;
    const { hashes } = this.disk.rows;
    return formatHash(hashes[chunk * 2]!, hashes[chunk * 2 + 1]!);
  }

  readChunk(chunk: number, position: number, length: number, into: Uint8Array, at: number): number {
    const count = Math.min(length, this.lengthOf(chunk) - position);
    if (count <= 0) return 0;
    // Parts of it may still be in the page cache, and a copy would seem to be whole.
    if (Atomics.load(this.disk.rows.control, LOST) !== 0) return EIO;
    try {
      this.#reader.read(chunk * this.disk.geometry.chunkSize + position, count, into, at);
      return count;
    } catch {
      return EIO;
    }
  }

  readSums(position: number, length: number, into: Uint8Array, at: number): number {
    const end = Math.min(position + length, this.sumsSize);
    const { hashes } = this.disk.rows;
    let from = position;
    while (from < end) {
      const chunk = Math.floor(from / this.#lineLength);
      const state = this.resolver.resolve(chunk);
      if (state === UNREADABLE) return EIO;
      const skipped = state === ZERO && this.skipsZeros;
      const line = this.#lines.line(chunk, hashes[chunk * 2]!, hashes[chunk * 2 + 1]!, skipped);
      const begin = from - chunk * this.#lineLength;
      // All but the first and the last are whole.
      const piece =
        begin === 0 && line.length <= end - from ? line : line.subarray(begin, begin + end - from);
      into.set(piece, at + from - position);
      from += piece.length;
    }
    return Math.max(0, end - position);
  }
}

/** For a disk whose chunk directories may have other names in them than in the last session; else undefined. */
export function directoryTimes(disk: TreeDisk, hasher: ChunkHasher): DirectoryTimes | undefined {
  const { geometry, rows, times, stored, directoryMtimes: mtimes } = disk;
  if (!disk.compareDirectories || stored === undefined) return undefined;
  const index = StoredIndex.attach(stored.fd, stored.header);
  return new DirectoryTimes({ disk: geometry, rows, times, stored: index, mtimes, hasher });
}
