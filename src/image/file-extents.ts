import * as fs from 'node:fs';
import { failed } from '../errors.js';
import { runLines } from '../host/exec.js';
import type { ExtentMap } from './extent-map.js';
import { ExtentMapBuilder } from './extent-map-builder.js';
import { roundToSector } from './layered-map.js';

/** Source numbers of a map of blocks: the extent's bytes are at that offset of the file system's device; … */
export const BLOCKS = 0;
/** … or where nothing can be told: compressed, inline, not written yet. */
export const NOWHERE = 1;

/** Reading the map of a file in millions of pieces takes seconds, once its data has been written out. */
const TIMEOUT_MS = 600_000;

/** A file in more pieces is not worth comparing. */
const MAX_EXTENTS = 5_000_000;

/** Flags of filefrag(8) that take nothing away from what the address says. */
const HARMLESS: ReadonlySet<string> = new Set(['last', 'merged', 'shared', 'eof']);

/** FIEMAP_EXTENT_SHARED. What two files share has it in both. */
const SHARED = 'shared';
/** FIEMAP_EXTENT_UNWRITTEN: allocated, and read as zeros. */
const UNWRITTEN = 'unwritten';

const EXTENT = /^ *\d+: *(\d+)\.\. *(\d+): *(\d+)\.\. *(\d+): *(\d+):(?: *\d+:)? *([a-z0-9_,]*) *$/;
const SIZE = /^File size of \S+ is (\d+) \(/;
const OTHERS = /^(?:Filesystem type is: |File size of | ext: )/;
const END = / extents? found$/;

/** One extent of a file. Numbers are bytes. */
export interface FileExtent {
  readonly start: number;
  readonly length: number;
  /** Undefined: it cannot be told, or nobody else has these blocks. `zeros`: there is nothing written. */
  readonly address: number | 'zeros' | undefined;
}

function inconsistent(line: string): Error {
  return failed(`filefrag gave an unexpected answer: ${JSON.stringify(line.slice(0, 200))}`);
}

/** An extent of `filefrag -v -b1`; undefined if the line has none. Throws if it is no line of filefrag's, or does not add up. */
export function parseFileExtent(line: string): FileExtent | undefined {
  const match = EXTENT.exec(line);
  if (match === null) {
    if (OTHERS.test(line) || END.test(line)) return undefined;
    throw inconsistent(line);
  }
  const [start, end, first, last, length] = match.slice(1, 6).map(Number) as [
    number,
    number,
    number,
    number,
    number,
  ];
  const flags = match[6]!.split(',').filter(Boolean);
  if (!(Number.isSafeInteger(end) && length > 0 && end - start + 1 === length)) throw inconsistent(line);
  const rest = flags.filter((flag) => !HARMLESS.has(flag));
  if (rest.length === 1 && rest[0] === UNWRITTEN) return { start, length, address: 'zeros' };
  const certain =
    rest.length === 0 && flags.includes(SHARED) && Number.isSafeInteger(last) && last - first + 1 === length;
  return { start, length, address: certain ? first : undefined };
}

/** Puts extents of a file of `size` bytes together. What they do not cover are holes: zeros. */
class BlockMap {
  readonly #builder = new ExtentMapBuilder();
  #count = 0;

  constructor(readonly size: number) {}

  add({ start, length, address }: FileExtent): void {
    if (start < this.#builder.end) throw failed('the extents that filefrag told overlap');
    if (++this.#count > MAX_EXTENTS) throw failed(`the file is in more than ${MAX_EXTENTS} pieces`);
    // The last block may reach beyond the end, where it reads as zeros.
    if (start >= this.size) return;
    this.#builder.addZeros(start - this.#builder.end);
    const within = Math.min(length, this.size - start);
    if (address === 'zeros') this.#builder.addZeros(within);
    else if (address === undefined) this.#builder.addData(within, NOWHERE, start);
    else this.#builder.addData(within, BLOCKS, address);
  }

  finish(): ExtentMap {
    // As far as QEMU reads it.
    this.#builder.addZeros(roundToSector(this.size) - this.#builder.end);
    return this.#builder.finish();
  }
}

/**
 * Where each byte of a file lies on its file system's device, by FIEMAP, once all that was written is there; sources are BLOCKS and
 * NOWHERE. Two files of one file system that are at the same BLOCKS somewhere share them there, for as long as neither is written.
 * Only for XFS and Btrfs: there addresses are those of one device (or, in Btrfs, of one space of addresses).
 */
export async function readFileExtents(fd: number, signal?: AbortSignal | undefined): Promise<ExtentMap> {
  const { size } = fs.fstatSync(fd);
  const map = new BlockMap(size);
  let ended = false;
  // By descriptor: names are printed as they are, with line ends in them if they have some.
  const args = ['-s', '-v', '-b1', '/proc/self/fd/3'];
  for await (const line of runLines('filefrag', args, { descriptors: [fd], timeoutMs: TIMEOUT_MS, signal })) {
    const told = SIZE.exec(line)?.[1];
    if (told !== undefined && Number(told) !== size) throw failed('the file changed while it was looked at');
    const extent = parseFileExtent(line);
    if (extent !== undefined) map.add(extent);
    ended = END.test(line);
  }
  if (!ended) throw failed('filefrag did not tell all extents');
  return map.finish();
}

/** Whether two maps say the same. */
export function isSameMap(a: ExtentMap, b: ExtentMap): boolean {
  if (a.count !== b.count || a.size !== b.size) return false;
  for (let extent = 0; extent < a.count; extent++) {
    if (a.startOf(extent) !== b.startOf(extent) || a.sourceOf(extent) !== b.sourceOf(extent)) return false;
    if (a.offsetOf(extent) !== b.offsetOf(extent)) return false;
  }
  return true;
}
