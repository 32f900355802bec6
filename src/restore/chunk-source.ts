import * as fs from 'node:fs';
import { type ChunkHasher, createHasher } from '../chunks/chunk-hash.js';
import { CHUNKS_PER_DIRECTORY, chunkLength } from '../chunks/geometry.js';
import { chunkName, chunkPath, directoryNames, type Layout, layoutOf } from '../chunks/layout.js';
import type { ManifestDisk } from '../chunks/manifest.js';
import { formatHash } from '../chunks/paths.js';
import { systemCode } from '../errors.js';
import { pageBuffer } from '../host/page-buffer.js';
import { DamageError, type DamageKind } from './damage.js';
import { readFully } from './full-io.js';
import type { Sums } from './sums.js';
import { isWrongType, listNames, openBelow, openFile, statFile } from './tree-files.js';

/** In place of a descriptor: no directory is open, or there is none to open. */
export const NONE = -1;

/** As in the resolver: what is read and hashed at once stays in the processor's cache. */
const PIECE_LENGTH = 128 * 1024;

/** For the byte that there must not be behind a chunk. */
const PROBE = new Uint8Array(1);

/** What is in the place of a chunk, by the error of whoever took it for a file. */
function wrongTypeText(code: string): string {
  if (code === 'ELOOP') return 'a link';
  return code === 'ENOTDIR' ? 'below a link or a file' : 'no plain file';
}

/** What the sums say of each chunk. */
export type KnownSums = Pick<Sums, 'hashes' | 'lost' | 'skipped' | 'none'>;

/** What a worker thread needs to read the same disk. Descriptors are those of the whole process. */
export interface SharedSource {
  readonly root: string;
  readonly disk: ManifestDisk;
  readonly sums: KnownSums;
  /** The disk's directory, or NONE: then every chunk is missing. */
  readonly directory: number;
}

/**
 * Reads the chunks of one disk of a tree, for one thread. The tree is untrusted: no link is followed, and a chunk is what its
 * file's size and its hash in the sums file say, or a DamageError.
 */
export class ChunkSource {
  /** Number and descriptor of the chunk directory that was used last. */
  #openNumber = NONE;
  #openFd = NONE;
  readonly #found = new Uint32Array(2);
  readonly #piece = pageBuffer(PIECE_LENGTH);
  readonly #zeros: Buffer;
  readonly #layout: Layout;
  readonly #zeroHashes: readonly [Uint32Array, Uint32Array];

  private constructor(
    private readonly shared: SharedSource,
    private readonly hasher: ChunkHasher,
    private readonly owner: boolean,
  ) {
    const { disk } = shared;
    this.#layout = layoutOf(disk.layout);
    this.#zeros = Buffer.alloc(disk.chunkSize);
    const last = disk.chunkCount === 0 ? 0 : chunkLength(disk, disk.chunkCount - 1);
    this.#zeroHashes = [this.#hashOfZeros(disk.chunkSize), this.#hashOfZeros(last)];
  }

  /**
   * A source for this thread; hashers belong to threads. `owner`: closing it closes the descriptor that `shared` has, which
   * must stay open as long as another thread reads. See openSource for how to get the first one.
   */
  static async create(shared: SharedSource, owner = false): Promise<ChunkSource> {
    return new ChunkSource(shared, await createHasher(), owner);
  }

  share(): SharedSource {
    return this.shared;
  }

  get root(): string {
    return this.shared.root;
  }

  get disk(): ManifestDisk {
    return this.shared.disk;
  }

  get sums(): KnownSums {
    return this.shared.sums;
  }

  /** Bytes in chunk `index`. */
  lengthOf(index: number): number {
    return chunkLength(this.disk, index);
  }

  /** Whether the chunk's line in the sums file is lost. */
  isLost(index: number): boolean {
    return this.sums.lost !== undefined && this.sums.lost[index] === 1;
  }

  /** Whether there is anything to compare chunks with. */
  get hasSums(): boolean {
    return !this.sums.none;
  }

  /**
   * Whether the chunk is all zeros and has no file. That takes both: a line that says so, with the hash of zeros. So a chunk whose
   * line is lost or damaged is never taken for zeros.
   */
  isSkipped(index: number): boolean {
    return this.sums.skipped?.[index] === 1 && this.isZero(index);
  }

  /** Whether the sums say that the chunk is all zeros. An equal hash is no proof of it: `holdsZeros` is. */
  isZero(index: number): boolean {
    const zero = this.#zeroHashes[index === this.disk.chunkCount - 1 ? 1 : 0];
    return !this.isLost(index) && this.#hasHash(index, zero);
  }

  /** Whether the first `length` bytes of a buffer are zeros. */
  holdsZeros(buffer: Uint8Array, length: number): boolean {
    return Buffer.compare(buffer.subarray(0, length), this.#zeros.subarray(0, length)) === 0;
  }

  /** Whether `data` is what chunk `index` should be. False for a chunk whose line is lost. */
  matches(index: number, data: Uint8Array): boolean {
    if (this.isLost(index)) return false;
    this.hasher.hash(data, this.#found, 0);
    return this.#hasHash(index, this.#found);
  }

  /**
   * Reads chunk `index` into `into` from `at` on, and checks its size and its content. Returns its length in bytes. Throws DamageError;
   * if it is the content that is wrong, or there is no sum for it, it has been read all the same.
   */
  read(index: number, into: Uint8Array, at = 0): number {
    return this.#readChecked(index, (done, count) => into.subarray(at + done, at + done + count));
  }

  /** Reads chunk `index` and checks its size and its content. Throws DamageError. */
  verify(index: number): void {
    this.#readChecked(index, (_, count) => this.#piece.subarray(0, count));
  }

  /** `pieceAt` says where the bytes of a piece go. Each is hashed at once, while it is in the processor's cache. */
  #readChecked(index: number, pieceAt: (done: number, count: number) => Uint8Array): number {
    const length = this.lengthOf(index);
    if (this.isSkipped(index)) {
      for (let done = 0; done < length; done += PIECE_LENGTH)
        pieceAt(done, Math.min(PIECE_LENGTH, length - done)).fill(0);
      return length;
    }
    this.hasher.begin();
    let fd = NONE;
    try {
      fd = openFile(this.#directoryOf(index), chunkName(this.#layout, index));
      for (let done = 0; done < length; done += PIECE_LENGTH) {
        const piece = pieceAt(done, Math.min(PIECE_LENGTH, length - done));
        if (readFully(fd, piece, piece.byteLength, done) !== piece.byteLength)
          throw this.#wrongSize(index, fs.fstatSync(fd), length);
        this.hasher.update(piece);
      }
      if (readFully(fd, PROBE, 1, length) !== 0) throw this.#wrongSize(index, fs.fstatSync(fd), length);
    } catch (error) {
      throw error instanceof DamageError ? error : this.#openFailed(index, error);
    } finally {
      if (fd !== NONE) fs.closeSync(fd);
    }
    this.hasher.end(this.#found, 0);
    this.#checkFound(index);
    return length;
  }

  #checkFound(index: number): void {
    if (!this.hasSums) return;
    if (this.isLost(index)) throw this.#damage('unverified', index, '', '');
    if (this.#hasHash(index, this.#found)) return;
    throw this.#damage('hash', index, this.expected(index), formatHash(this.#found[0]!, this.#found[1]!));
  }

  /** The hash in the sums file: 16 hex digits, or `unknown`. */
  expected(index: number): string {
    const { hashes } = this.sums;
    return this.isLost(index) || !this.hasSums
      ? 'unknown'
      : formatHash(hashes[index * 2]!, hashes[index * 2 + 1]!);
  }

  /** Throws DamageError unless the chunk's file is there and has the right size; its content is not read. */
  checkSize(index: number): void {
    if (this.isSkipped(index)) return;
    const length = this.lengthOf(index);
    try {
      const stat = statFile(this.#directoryOf(index), chunkName(this.#layout, index));
      if (!stat.isFile() || stat.size !== length) throw this.#wrongSize(index, stat, length);
    } catch (error) {
      throw error instanceof DamageError ? error : this.#openFailed(index, error);
    }
  }

  /** Opens the file of chunk `index`, which the caller closes. Checks its size, not its content. Throws DamageError. */
  openChunk(index: number): number {
    let fd = NONE;
    try {
      fd = openFile(this.#directoryOf(index), chunkName(this.#layout, index));
      const stat = fs.fstatSync(fd);
      if (!stat.isFile() || stat.size !== this.lengthOf(index))
        throw this.#wrongSize(index, stat, this.lengthOf(index));
      return fd;
    } catch (error) {
      if (fd !== NONE) fs.closeSync(fd);
      throw error instanceof DamageError ? error : this.#openFailed(index, error);
    }
  }

  /** The error for the file of chunk `index` that turned out to be only `length` bytes long. */
  cutOff(index: number, length: number): DamageError {
    return this.#damage('size', index, String(this.lengthOf(index)), String(length));
  }

  /** The error for the file of chunk `index` that was open and could not be read: `error` is the system's. */
  unreadable(index: number, error: unknown): DamageError {
    return this.#openFailed(index, error);
  }

  /** The names in chunk directory `number`, strays included; none if it cannot be opened. Throws system errors. */
  *names(number: number): Generator<string, void, undefined> {
    let fd: number;
    try {
      fd = this.#directoryOf(number * CHUNKS_PER_DIRECTORY);
    } catch {
      return;
    }
    yield* listNames(fd);
  }

  close(): void {
    if (this.#openFd !== NONE) fs.closeSync(this.#openFd);
    this.#openFd = NONE;
    this.#openNumber = NONE;
    if (this.owner && this.shared.directory !== NONE) fs.closeSync(this.shared.directory);
  }

  /** Descriptor of the directory that holds the chunk. Throws system errors. */
  #directoryOf(index: number): number {
    const number = Math.floor(index / CHUNKS_PER_DIRECTORY);
    if (number === this.#openNumber) return this.#openFd;
    if (this.#openFd !== NONE) fs.closeSync(this.#openFd);
    this.#openNumber = NONE;
    this.#openFd = NONE;
    this.#openFd = openBelow(this.shared.directory, directoryNames(this.#layout, number));
    this.#openNumber = number;
    return this.#openFd;
  }

  #hashOfZeros(length: number): Uint32Array {
    const hash = new Uint32Array(2);
    this.hasher.hash(this.#zeros.subarray(0, length), hash, 0);
    return hash;
  }

  #hasHash(index: number, hash: Uint32Array): boolean {
    const { hashes } = this.sums;
    return hashes[index * 2] === hash[0] && hashes[index * 2 + 1] === hash[1];
  }

  #wrongSize(index: number, stat: fs.Stats, length: number): DamageError {
    if (!stat.isFile()) return this.#damage('unsafe', index, this.expected(index), 'no plain file');
    return this.#damage('size', index, String(length), String(stat.size));
  }

  #openFailed(index: number, error: unknown): DamageError {
    const code = systemCode(error);
    if (code === undefined) throw error;
    const kind: DamageKind = code === 'ENOENT' ? 'missing' : isWrongType(error) ? 'unsafe' : 'unreadable';
    const found = kind === 'missing' ? 'nothing' : kind === 'unsafe' ? wrongTypeText(code) : code;
    return this.#damage(kind, index, this.expected(index), found);
  }

  #damage(kind: DamageKind, index: number, expected: string, found: string): DamageError {
    return new DamageError(this.root, {
      kind,
      disk: this.disk.target,
      chunk: index,
      path: `${this.disk.directory}/${chunkPath(this.#layout, index)}`,
      expected,
      found,
    });
  }
}
