import type { ChunkHasher } from '../chunks/chunk-hash.js';
import { CHUNKS_PER_DIRECTORY, chunkLength, type Geometry } from '../chunks/geometry.js';
import type { StoredIndex } from './index-file.js';
import { READY, ROWS_PER_BLOCK, type Rows, ZERO } from './rows.js';
import { latestPossibleMtime, type SessionTimes } from './stable-times.js';

export interface DirectoryTimesRequest {
  readonly disk: Geometry;
  readonly rows: Rows;
  readonly times: SessionTimes;
  /** The index of the last session, which left out chunks of zeros, too. */
  readonly stored: StoredIndex;
  /** Shared by all threads. Holds the last session's times, except for directories that are known to have changed. */
  readonly mtimes: Uint32Array;
  readonly hasher: ChunkHasher;
}

/**
 * mtimes of the chunk directories of a tree without chunks of zeros. A directory keeps its time while the set of names in it is the
 * same: while the same of its chunks are zeros as in the last session. Every thread comes to the same result.
 */
export class DirectoryTimes {
  readonly #before: Geometry;
  readonly #zeroHashes = new Map<number, readonly [number, number]>();
  #block = -1;
  #rows: ReturnType<StoredIndex['readBlock']>;

  constructor(private readonly request: DirectoryTimesRequest) {
    const { chunkSize, chunkCount, diskSize: size } = request.stored.header;
    this.#before = { size, chunkSize, chunkCount };
  }

  /** Looks at the chunks of a directory that are known by now; answers its time. It is final once all of them are. */
  update(directory: number): number {
    const { stored, mtimes, times } = this.request;
    const before = stored.header.directoryMtimes[directory];
    const now = Atomics.load(mtimes, directory);
    if (now !== before || !this.#hasChanged(directory)) return now;
    const changed = Math.max(latestPossibleMtime(times), before + 1);
    Atomics.store(mtimes, directory, changed);
    return changed;
  }

  /** For what is about to be saved. */
  updateAll(): void {
    for (let directory = 0; directory < this.request.mtimes.length; directory++) this.update(directory);
  }

  #hasChanged(directory: number): boolean {
    const { rows, disk, times } = this.request;
    const first = directory * CHUNKS_PER_DIRECTORY;
    const end = Math.min(first + CHUNKS_PER_DIRECTORY, disk.chunkCount);
    for (let chunk = first; chunk < end; chunk++) {
      const state = Atomics.load(rows.states, chunk);
      // No row that was kept has a later time: see changedMtime.
      if (state < READY || rows.mtimes[chunk]! <= times.newest) continue;
      if (this.#wasZero(chunk) !== (state === ZERO)) return true;
    }
    return false;
  }

  /** Undefined if that is not known. */
  #wasZero(chunk: number): boolean | undefined {
    const block = Math.floor(chunk / ROWS_PER_BLOCK);
    if (block !== this.#block) {
      this.#rows = this.request.stored.readBlock(block, this.request.hasher);
      this.#block = block;
    }
    const row = chunk - block * ROWS_PER_BLOCK;
    if (this.#rows === undefined || this.#rows.mtimes.readUInt32LE(row * 4) === 0) return undefined;
    const [high, low] = this.#zeroHash(chunkLength(this.#before, chunk));
    return (
      this.#rows.hashes.readUInt32LE(row * 8) === high && this.#rows.hashes.readUInt32LE(row * 8 + 4) === low
    );
  }

  #zeroHash(length: number): readonly [number, number] {
    let known = this.#zeroHashes.get(length);
    if (known === undefined) {
      const hash = new Uint32Array(2);
      this.request.hasher.hash(new Uint8Array(length), hash, 0);
      known = [hash[0]!, hash[1]!];
      this.#zeroHashes.set(length, known);
    }
    return known;
  }
}
