import * as fs from 'node:fs';
import * as path from 'node:path';
import type { ManifestDisk } from '../chunks/manifest.js';
import { type SumsShape, skippedSumsLine, sumsLine, sumsLineLength } from '../chunks/sums-line.js';
import { ChunkmountError, failed } from '../errors.js';
import { pageBuffer } from '../host/page-buffer.js';
import { readFully } from './full-io.js';
import { type Tree, unreadable } from './tree.js';
import { openFile } from './tree-files.js';

/** Read at once; any size that holds a line does. */
const PIECE_BYTES = 4 * 1024 * 1024;
/** A sums file with more bad lines is no use: the rest is counted, not listed. */
const MAX_BAD_LINES = 1000;
const HASH_DIGITS = 16;
const COMMENT = '#'.charCodeAt(0);

/** ASCII code → value of a lower-case hex digit; -1 for anything else. */
const DIGIT = new Int8Array(256).fill(-1);
for (const [value, digit] of [...'0123456789abcdef'].entries()) DIGIT[digit.charCodeAt(0)] = value;

/** The hashes of a disk's chunks. Its arrays are shared memory, so every worker thread sees them. */
export interface Sums {
  /** Chunk i: upper 32 bits at 2 i, lower at 2 i + 1. */
  readonly hashes: Uint32Array;
  /** 1 for a chunk whose line is lost; undefined if none is. */
  readonly lost: Uint8Array | undefined;
  /** 1 for a chunk of zeros that has no file; undefined for a tree that leaves none out. */
  readonly skipped: Uint8Array | undefined;
  /** Nobody knows any hash: a plain copy of chunkfs. `hashes` is empty then. */
  readonly none: boolean;
  /** What is wrong with the sums file, the first thing first, of bad lines at most MAX_BAD_LINES; empty if nothing is. */
  readonly problems: readonly ChunkmountError[];
  /** How many things are wrong with it, those that are not in `problems` included. */
  readonly problemCount: number;
}

/** Eight hex digits as an unsigned number, or -1. */
function parseWord(bytes: Uint8Array, at: number): number {
  let word = 0;
  for (let i = at; i < at + 8; i++) {
    const digit = DIGIT[bytes[i]!]!;
    if (digit < 0) return -1;
    word = word * 16 + digit;
  }
  return word;
}

/** What follows the hash in a line: `  vda/0001a2/0001a2f3\n`; of a chunk without a file ` vda/0001a2/0001a2f3\n`. */
class LineTails {
  #present: Buffer;
  #skipped: Buffer;

  constructor(
    private readonly shape: SumsShape,
    first: number,
  ) {
    [this.#present, this.#skipped] = this.#make(first);
  }

  of(skipped: boolean): Buffer {
    return skipped ? this.#skipped : this.#present;
  }

  /** Within a directory only the last two digits change: they are patched in, which is ten times as fast as making the text anew. */
  goTo(index: number): void {
    if (index % 256 === 0) {
      [this.#present, this.#skipped] = this.#make(index);
      return;
    }
    patch(this.#present, index);
    patch(this.#skipped, index);
  }

  #make(index: number): [Buffer, Buffer] {
    const present = Buffer.from(sumsLine(this.shape, index, ''));
    return [present, Buffer.from(skippedSumsLine(this.shape, index, '').slice(1))];
  }
}

function patch(tail: Buffer, index: number): void {
  const end = tail.byteLength - 1;
  tail[end - 2] = hexDigit((index >>> 4) & 15);
  tail[end - 1] = hexDigit(index & 15);
}

/** Where parsed lines go, each to its place counted from the first. */
export interface ParsedLines {
  /** Two words a line. */
  readonly hashes: Uint32Array;
  /** Set to 1 for chunks without a file; undefined: there must be none. */
  readonly skipped?: Uint8Array | undefined;
}

/**
 * Parses whole lines of a sums file, the first of which is line `first`. Calls `onBad` with the number of each line that is not
 * exactly what it should be; its hash is left as it was.
 */
export function parseSums(
  shape: SumsShape,
  first: number,
  bytes: Uint8Array,
  { hashes, skipped }: ParsedLines,
  onBad: (line: number) => void,
): void {
  const length = sumsLineLength(shape);
  const count = Math.floor(bytes.byteLength / length);
  const tails = new LineTails(shape, first);
  for (let i = 0; i < count; i++) {
    if (i > 0) tails.goTo(first + i);
    const isSkipped = skipped !== undefined && bytes[i * length] === COMMENT;
    const at = i * length + (isSkipped ? 1 : 0);
    const high = parseWord(bytes, at);
    const low = parseWord(bytes, at + 8);
    if (high < 0 || low < 0 || !equals(bytes, at + HASH_DIGITS, tails.of(isSkipped))) {
      onBad(first + i);
      continue;
    }
    hashes[i * 2] = high;
    hashes[i * 2 + 1] = low;
    if (isSkipped) skipped[i] = 1;
  }
}

function hexDigit(value: number): number {
  return value < 10 ? 48 + value : 87 + value;
}

function equals(bytes: Uint8Array, at: number, tail: Uint8Array): boolean {
  for (let i = 0; i < tail.byteLength; i++) if (bytes[at + i] !== tail[i]) return false;
  return true;
}

/**
 * Reads a disk's sums file. Never throws for its content: what is wrong is in `problems`, and the lines that are lost in
 * `lost`, so that verify can name everything and a restore with `--keep-going` can go on.
 */
export function readSums(tree: Tree, disk: ManifestDisk): Sums {
  if (tree.isPlain) {
    const nothing = { hashes: new Uint32Array(0), lost: undefined, skipped: undefined };
    return { ...nothing, none: true, problems: [], problemCount: 0 };
  }
  const file = path.join(tree.root, disk.sums);
  const problems: ChunkmountError[] = [];
  let fd: number | undefined;
  try {
    fd = openFile(tree.fd, disk.sums);
  } catch (error) {
    problems.push(unreadable(file, error));
  }
  try {
    return readOpened(fd, file, disk, problems);
  } finally {
    if (fd !== undefined) fs.closeSync(fd);
  }
}

function readOpened(
  fd: number | undefined,
  file: string,
  disk: ManifestDisk,
  problems: ChunkmountError[],
): Sums {
  const length = sumsLineLength(disk);
  const stat = fd === undefined ? undefined : fs.fstatSync(fd);
  if (stat !== undefined) checkSize(stat, file, disk, problems);
  const readable = stat?.isFile() === true ? Math.min(disk.chunkCount, Math.floor(stat.size / length)) : 0;
  const { hashes, lost, skipped } = allocate(disk);
  let lostCount = disk.chunkCount - readable;
  let badLines = 0;
  lost.fill(1, readable);
  const piece = pageBuffer(Math.floor(PIECE_BYTES / length) * length);
  for (let first = 0; first < readable; first += piece.byteLength / length) {
    const wanted = Math.min(piece.byteLength, (readable - first) * length);
    let got: number;
    try {
      got = readFully(fd!, piece, wanted, first * length);
    } catch (error) {
      problems.push(unreadable(file, error));
      lost.fill(1, first, first + wanted / length);
      lostCount += wanted / length;
      continue;
    }
    // A file that shrinks under us: the rest of its lines are lost, whatever the buffer still holds.
    piece.fill(0, got, wanted);
    const into = { hashes: hashes.subarray(first * 2), skipped: skipped?.subarray(first) };
    parseSums(disk, first, piece.subarray(0, wanted), into, (line) => {
      lost[line] = 1;
      lostCount++;
      if (badLines++ < MAX_BAD_LINES) problems.push(badLine(file, line));
    });
  }
  const problemCount = problems.length + Math.max(0, badLines - MAX_BAD_LINES);
  return { hashes, lost: lostCount === 0 ? undefined : lost, skipped, none: false, problems, problemCount };
}

function allocate(disk: ManifestDisk): {
  hashes: Uint32Array;
  lost: Uint8Array;
  skipped: Uint8Array | undefined;
} {
  try {
    return {
      skipped:
        disk.zeroChunks === 'skip' ? new Uint8Array(new SharedArrayBuffer(disk.chunkCount)) : undefined,
      hashes: new Uint32Array(new SharedArrayBuffer(disk.chunkCount * 8)),
      lost: new Uint8Array(new SharedArrayBuffer(disk.chunkCount)),
    };
  } catch (error) {
    throw failed(`the ${disk.chunkCount} hashes of ${disk.target} do not fit into memory`, { cause: error });
  }
}

function checkSize(stat: fs.Stats, file: string, disk: ManifestDisk, problems: ChunkmountError[]): void {
  const expected = disk.chunkCount * sumsLineLength(disk);
  if (!stat.isFile()) problems.push(sumsError(file, 'is no plain file'));
  else if (stat.size !== expected) {
    problems.push(
      sumsError(file, `has ${stat.size} bytes instead of ${expected}: it is cut off, or of another disk`),
    );
  }
}

function badLine(file: string, line: number): ChunkmountError {
  return sumsError(file, `is damaged in line ${line + 1}`);
}

function sumsError(file: string, what: string): ChunkmountError {
  return new ChunkmountError('integrity', `${file} ${what}`, {
    hint: `take ${path.basename(file)} from another copy of this backup; --keep-going restores what cannot be checked, too`,
    details: { file },
  });
}
