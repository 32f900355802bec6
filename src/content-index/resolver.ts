import type { ChunkHasher } from '../chunks/chunk-hash.js';
import { chunkLength, type Geometry } from '../chunks/geometry.js';
import { pageBuffer } from '../host/page-buffer.js';
import { Audit, type KeepPlan } from './audit.js';
import { ChangeLog } from './change-log.js';
import { ensureBlock, type StoredIndex } from './index-file.js';
import {
  announceChange,
  CHANGED,
  CLAIMED,
  DATA,
  GENERATION,
  KEPT,
  READY,
  RESOLVED,
  ROWS_PER_BLOCK,
  type Rows,
  TRUST,
  TRUSTED,
  UNCHANGED,
  UNKNOWN,
  UNREADABLE,
  UNREADABLE_COUNT,
  UNTRACKED,
  waitForChange,
  ZERO,
} from './rows.js';
import { changedMtime, newMtime, type SessionTimes } from './stable-times.js';

/** Where the resolver gets the disk's bytes from. */
export interface DiskReader {
  /** Reads `length` bytes at `position` of the disk into `buffer` at `offset`. Throws when it cannot. */
  read(position: number, length: number, buffer: Uint8Array, offset: number): void;
}

export interface ZeroMap {
  /** Whether that range is known to be zeros without reading it. */
  isZero(position: number, length: number): boolean;
}

/** Bytes that are read at once, and hashed before the next: they stay in the processor's cache. */
const PIECE_LENGTH = 128 * 1024;

/**
 * Finds out the hash and the mtime of chunks of one disk. Each thread has its own resolver on the same rows; whoever
 * claims a chunk first reads it, the others wait.
 */
export class Resolver {
  readonly #zeros = new Uint8Array(PIECE_LENGTH);
  readonly #buffer: Uint8Array = pageBuffer(PIECE_LENGTH);
  readonly #hash = new Uint32Array(2);
  readonly #zeroHashes = new Map<number, readonly [number, number]>();
  readonly #falseZeros: ReadonlySet<number>;
  readonly #log: ChangeLog;
  /** Whether a tracker is believed that says what did not change. */
  readonly audit: Audit;

  constructor(
    readonly disk: Geometry,
    readonly rows: Rows,
    private readonly reader: DiskReader,
    private readonly zeroMap: ZeroMap,
    private readonly hasher: ChunkHasher,
    private readonly times: SessionTimes,
    private readonly stored: StoredIndex | undefined,
    plan?: KeepPlan | undefined,
    /** Descriptor of the disk's change log. */
    log?: number | undefined,
  ) {
    this.#log = new ChangeLog(log);
    this.#falseZeros = new Set(plan?.falseZeros);
    this.audit = new Audit(rows, plan?.samples ?? new Uint32Array(), (chunk) => this.#isAsStored(chunk));
  }

  /** Makes the row of `chunk` final, waiting for another thread if that has it. Returns its state: READY or later. */
  resolve(chunk: number): number {
    const { control, states } = this.rows;
    // Mostly it is final already.
    const known = Atomics.load(states, chunk);
    if (known >= READY) return known;
    for (;;) {
      const generation = Atomics.load(control, GENERATION);
      const state = Atomics.load(states, chunk);
      if (state >= READY) return state;
      if (state === CLAIMED) waitForChange(control, generation);
      else if (state === UNCHANGED) this.keep(chunk, chunk + 1);
      else if (this.#claim(chunk)) this.#resolveRun(chunk, chunk + 1, this.#isKnownZero(chunk));
    }
  }

  /**
   * Makes the rows from `first` up to `end` final, except those that other threads have claimed. Small chunks that lie
   * next to each other are read at once.
   */
  resolveRange(first: number, end: number): void {
    const perRun = Math.max(1, Math.floor(PIECE_LENGTH / this.disk.chunkSize));
    if (Atomics.load(this.rows.control, TRUST) !== UNTRACKED) this.keep(first, end);
    // Of the run that is being collected: where it begins, and whether it is known to be zeros.
    let start = -1;
    let zeros = false;
    for (let chunk = first; chunk < end; chunk++) {
      const claimed = this.#claim(chunk);
      const zero = claimed && this.#isKnownZero(chunk);
      if (start >= 0 && (!claimed || zero !== zeros || chunk - start === perRun)) {
        this.#resolveRun(start, chunk, zeros);
        start = -1;
      }
      if (claimed && start < 0) {
        start = chunk;
        zeros = zero;
      }
    }
    if (start >= 0) this.#resolveRun(start, end, zeros);
  }

  /** Bytes that resolving the chunks from `first` up to `end` will read, as things are. */
  bytesToRead(first: number, end: number): number {
    const { disk, rows } = this;
    const trusted = Atomics.load(rows.control, TRUST) === TRUSTED;
    let bytes = 0;
    for (let chunk = first; chunk < end; chunk++) {
      const state = rows.states[chunk];
      const unread = state === UNKNOWN || (state === UNCHANGED && !trusted);
      if (unread && !this.#isKnownZero(chunk)) bytes += chunkLength(disk, chunk);
    }
    return bytes;
  }

  /**
   * Makes the rows that chunks had final if their tracker is believed and says that they did not change; else they are chunks like
   * all others. There are many of them, so they are counted and announced together.
   */
  keep(first: number, end: number): void {
    const { rows, disk } = this;
    if (!this.audit.passed()) {
      for (let chunk = first; chunk < end; chunk++)
        Atomics.compareExchange(rows.states, chunk, UNCHANGED, UNKNOWN);
      return;
    }
    const { states, hashes } = rows;
    let [zeroHigh, zeroLow] = this.#zeroHash(disk.chunkSize);
    // The rows below are in memory.
    let loaded = first;
    let kept = 0;
    for (let chunk = first; chunk < end; chunk++) {
      if (states[chunk] !== UNCHANGED) continue;
      if (chunk >= loaded) {
        const block = Math.floor(chunk / ROWS_PER_BLOCK);
        ensureBlock(rows, block, this.stored, this.hasher);
        loaded = (block + 1) * ROWS_PER_BLOCK;
      }
      // It may be short.
      if (chunk === disk.chunkCount - 1) [zeroHigh, zeroLow] = this.#zeroHash(chunkLength(disk, chunk));
      const zeroHash = hashes[chunk * 2 + 1] === zeroLow && hashes[chunk * 2] === zeroHigh;
      if (rows.mtimes[chunk] === 0) {
        // This block of the index is damaged: it is a chunk like all others, to be read when its turn comes.
        Atomics.compareExchange(states, chunk, UNCHANGED, UNKNOWN);
        continue;
      }
      if (!zeroHash && this.#isKnownZero(chunk)) {
        // It held data, and its image says that there is none any more: the tracker is not believed any more.
        this.#doubt(chunk);
        this.keep(chunk + 1, end);
        break;
      }
      const state = zeroHash && !this.#falseZeros.has(chunk) ? ZERO : DATA;
      if (Atomics.compareExchange(states, chunk, UNCHANGED, state) === UNCHANGED) kept++;
    }
    if (kept === 0) return;
    Atomics.add(rows.control, KEPT, kept);
    Atomics.add(rows.control, RESOLVED, kept);
    announceChange(rows.control);
  }

  /** Reads a chunk that is said to be unchanged, and cannot be. */
  #doubt(chunk: number): void {
    if (Atomics.compareExchange(this.rows.states, chunk, UNCHANGED, CLAIMED) !== UNCHANGED) return;
    this.audit.fail(chunk);
    this.#resolveRun(chunk, chunk + 1, this.#isKnownZero(chunk));
  }

  /** Whether the chunk's content is what its row says; undefined if that cannot be told. */
  #isAsStored(chunk: number): boolean | undefined {
    const { rows, disk } = this;
    ensureBlock(rows, Math.floor(chunk / ROWS_PER_BLOCK), this.stored, this.hasher);
    if (rows.mtimes[chunk] === 0) return undefined;
    if (this.#hashPieces(chunk * disk.chunkSize, chunkLength(disk, chunk)) === undefined) return undefined;
    return rows.hashes[chunk * 2] === this.#hash[0] && rows.hashes[chunk * 2 + 1] === this.#hash[1];
  }

  #claim(chunk: number): boolean {
    const { states } = this.rows;
    // Most chunks that are tried have been kept.
    return states[chunk] === UNKNOWN && Atomics.compareExchange(states, chunk, UNKNOWN, CLAIMED) === UNKNOWN;
  }

  /** Whether a chunk is zeros without being read. */
  #isKnownZero(chunk: number): boolean {
    return this.zeroMap.isZero(chunk * this.disk.chunkSize, chunkLength(this.disk, chunk));
  }

  /** Resolves claimed chunks that lie next to each other: known zeros, or what fits into the buffer, or one that is larger. */
  #resolveRun(first: number, end: number, zeros: boolean): void {
    const { size, chunkSize } = this.disk;
    const position = first * chunkSize;
    const length = Math.min(end * chunkSize, size) - position;
    if (zeros) {
      for (let chunk = first; chunk < end; chunk++) this.#takeZero(chunk);
      for (let chunk = first; chunk < end; chunk++) this.#finish(chunk, ZERO);
    } else if (length > PIECE_LENGTH) {
      this.#resolveLarge(first, position, length);
    } else if (this.#read(position, length)) {
      // All rows before the first is seen: what is new in them is logged at once.
      const states: number[] = [];
      for (let chunk = first; chunk < end; chunk++)
        states.push(this.#takeData(chunk, (chunk - first) * chunkSize));
      for (let chunk = first; chunk < end; chunk++) this.#finish(chunk, states[chunk - first]!);
    } else if (end - first === 1) {
      this.#finish(first, UNREADABLE);
    } else {
      // One bad sector must not make its neighbours unreadable.
      for (let chunk = first; chunk < end; chunk++) this.#resolveRun(chunk, chunk + 1, false);
      return;
    }
    announceChange(this.rows.control);
  }

  #read(position: number, length: number): boolean {
    try {
      this.reader.read(position, length, this.#buffer, 0);
      Atomics.add(this.rows.bytesRead, 0, BigInt(length));
      return true;
    } catch {
      return false;
    }
  }

  /** Leaves the hash of that range in `#hash`. Answers what it holds; undefined if it could not be read. */
  #hashPieces(position: number, length: number): 'data' | 'zeros' | undefined {
    let zeros = true;
    this.hasher.begin();
    for (let done = 0; done < length; done += PIECE_LENGTH) {
      const now = Math.min(PIECE_LENGTH, length - done);
      if (!this.#read(position + done, now)) return undefined;
      const piece = this.#buffer.subarray(0, now);
      this.hasher.update(piece);
      // Data differs from zeros soon, so this takes no time.
      zeros &&= this.#isZero(piece);
    }
    this.hasher.end(this.#hash, 0);
    return zeros ? 'zeros' : 'data';
  }

  #resolveLarge(chunk: number, position: number, length: number): void {
    const content = this.#hashPieces(position, length);
    if (content === undefined) {
      this.#finish(chunk, UNREADABLE);
      return;
    }
    this.#setRow(chunk, this.#hash[0]!, this.#hash[1]!);
    this.#finish(chunk, content === 'zeros' ? ZERO : DATA);
  }

  #takeZero(chunk: number): void {
    const length = chunkLength(this.disk, chunk);
    const [high, low] = this.#zeroHash(length);
    this.#setRow(chunk, high, low);
  }

  /** Returns the state that the chunk is to have. */
  #takeData(chunk: number, offset: number): number {
    const length = chunkLength(this.disk, chunk);
    const data = this.#buffer.subarray(offset, offset + length);
    this.hasher.hash(data, this.#hash, 0);
    const high = this.#hash[0]!;
    const low = this.#hash[1]!;
    // st_blocks of 0 makes `tar --sparse` store nothing, so an equal hash alone is no proof.
    const zero = this.#isZeroHash(length, high, low) && this.#isZero(data);
    this.#setRow(chunk, high, low);
    return zero ? ZERO : DATA;
  }

  #isZero(data: Uint8Array): boolean {
    return Buffer.compare(data, this.#zeros.subarray(0, data.byteLength)) === 0;
  }

  #isZeroHash(length: number, high: number, low: number): boolean {
    const [zeroHigh, zeroLow] = this.#zeroHash(length);
    return low === zeroLow && high === zeroHigh;
  }

  #zeroHash(length: number): readonly [number, number] {
    let known = this.#zeroHashes.get(length);
    if (known === undefined) {
      this.hasher.begin();
      for (let done = 0; done < length; done += PIECE_LENGTH)
        this.hasher.update(this.#zeros.subarray(0, Math.min(PIECE_LENGTH, length - done)));
      const hash = new Uint32Array(2);
      this.hasher.end(hash, 0);
      known = [hash[0]!, hash[1]!];
      this.#zeroHashes.set(length, known);
    }
    return known;
  }

  #setRow(chunk: number, high: number, low: number): void {
    const { rows, times } = this;
    ensureBlock(rows, Math.floor(chunk / ROWS_PER_BLOCK), this.stored, this.hasher);
    const previous = rows.mtimes[chunk]!;
    if (previous !== 0 && rows.hashes[chunk * 2] === high && rows.hashes[chunk * 2 + 1] === low) return;
    Atomics.add(rows.control, CHANGED, 1);
    const mtime = previous === 0 ? newMtime(times) : changedMtime(times, previous);
    // If nothing was known of it, it is later than all that a session showed that died.
    if (previous !== 0) this.#log.add(chunk, mtime);
    // The mtime first: see BlockCopy in save-index.ts.
    Atomics.store(rows.mtimes, chunk, mtime);
    Atomics.store(rows.hashes, chunk * 2, high);
    Atomics.store(rows.hashes, chunk * 2 + 1, low);
  }

  #finish(chunk: number, state: number): void {
    this.#log.write();
    Atomics.add(this.rows.control, state === UNREADABLE ? UNREADABLE_COUNT : RESOLVED, 1);
    Atomics.store(this.rows.states, chunk, state);
  }
}
