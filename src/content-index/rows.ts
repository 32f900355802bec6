import { failed } from '../errors.js';

/** States of a row. Everything from READY on is final for this session. */
export const UNKNOWN = 0;
export const CLAIMED = 1;
/** A tracker says that the chunk did not change: its row becomes final without reading it, once the audit has passed. */
export const UNCHANGED = 2;
export const DATA = 3;
/** All bytes are zero. */
export const ZERO = 4;
/** The chunk could not be read; its row still is the one of the previous session. */
export const UNREADABLE = 5;
export const READY = DATA;

/** Rows that the index file checks and loads together. */
export const ROWS_PER_BLOCK = 4096;

/** States of a block of rows: whether the previous session's rows are in memory yet. */
export const BLOCK_ABSENT = 0;
export const BLOCK_LOADING = 1;
export const BLOCK_LOADED = 2;

/** Slots of `control`. */
export const GENERATION = 0;
export const WAITERS = 1;
/** Next batch that a scanner takes. */
export const CURSOR = 2;
/** Not 0: scanners end as soon as they can. */
export const STOP = 3;
/** Rows that are READY. */
export const RESOLVED = 4;
/** Rows whose content differs from the previous session's. */
export const CHANGED = 5;
export const UNREADABLE_COUNT = 6;
/** Blocks of the index file whose checksum was wrong. */
export const DAMAGED_BLOCKS = 7;
/** Not 0: the frozen disk is lost; what would be read now is not what it held. */
export const LOST = 8;
/** Whether the tracker is believed: one of the four below. */
export const TRUST = 9;
/** Next sample of the audit to be taken, and how many have been compared. */
export const AUDIT_NEXT = 10;
export const AUDIT_DONE = 11;
/** 1 + a chunk that did change although its tracker said no. */
export const MISMATCH = 12;
/** Not 0: that was found when other rows had been believed and shown already. */
export const MISMATCH_LATE = 13;
/** Rows that became final without being read, because their tracker said so. */
export const KEPT = 14;
/** Next block of rows of which a scanner keeps those that may be. */
export const KEEP_NEXT = 15;
const CONTROL_SLOTS = 16;

/** Values of TRUST. */
export const UNTRACKED = 0;
export const AUDITING = 1;
export const TRUSTED = 2;
export const DISTRUSTED = 3;

/** 2^30 rows need 13 GiB; more is a mistake rather than a disk. */
const MAX_ROWS = 2 ** 30;

/**
 * The chunk index of one disk in memory that all threads share: 13 bytes a chunk. A row holds the previous
 * session's values until this session's replace them.
 */
export interface Rows {
  readonly count: number;
  readonly control: Int32Array;
  /** Two words a row: upper and lower half of the hash. */
  readonly hashes: Uint32Array;
  /** Seconds since the epoch; 0: nothing is known of this chunk. */
  readonly mtimes: Uint32Array;
  readonly states: Uint8Array;
  /** One bit a row: whether somebody has read the chunk from the tree. */
  readonly served: Uint8Array;
  /** One word a block of ROWS_PER_BLOCK rows. */
  readonly blocks: Int32Array;
  /** One element: bytes of the disk that were read to hash them. */
  readonly bytesRead: BigInt64Array;
}

/** Rows without content for a disk of `count` chunks. Memory is only taken up as rows are written. */
export function createRows(count: number): Rows {
  if (count > MAX_ROWS) {
    throw failed(`${count} chunks are too many for the index`, { hint: 'give a larger --chunk-size' });
  }
  const words = (length: number) => new SharedArrayBuffer(Math.max(length, 1) * 4);
  return {
    count,
    control: new Int32Array(words(CONTROL_SLOTS)),
    hashes: new Uint32Array(words(count * 2), 0, count * 2),
    mtimes: new Uint32Array(words(count), 0, count),
    states: new Uint8Array(new SharedArrayBuffer(Math.max(count, 1)), 0, count),
    served: new Uint8Array(new SharedArrayBuffer(Math.floor(count / 8) + 1)),
    blocks: new Int32Array(words(Math.ceil(count / ROWS_PER_BLOCK))),
    bytesRead: new BigInt64Array(new SharedArrayBuffer(8)),
  };
}

/** Waits until something changes after `generation` was read; at most a second, in case the other thread died. */
export function waitForChange(control: Int32Array, generation: number): void {
  Atomics.add(control, WAITERS, 1);
  Atomics.wait(control, GENERATION, generation, 1000);
  Atomics.sub(control, WAITERS, 1);
}

/** Tells waiting threads that a row or block became final. */
export function announceChange(control: Int32Array): void {
  Atomics.add(control, GENERATION, 1);
  if (Atomics.load(control, WAITERS) > 0) Atomics.notify(control, GENERATION);
}

/** Notes that a chunk was read from the tree. Returns whether it is the first time. */
export function markServed({ served }: Rows, chunk: number): boolean {
  const bit = 1 << (chunk % 8);
  const byte = Math.floor(chunk / 8);
  return (served[byte]! & bit) === 0 && (Atomics.or(served, byte, bit) & bit) === 0;
}
