import type { SharedExtentMap } from '../../image/extent-map.js';
import type { ReaderSource } from '../../image/extent-reader.js';

/** A file or pipe that a thread writes; the thread that opened it closes it. */
export interface OpenOutput {
  readonly fd: number;
  /** For messages. */
  readonly path: string;
}

/** Work of read-worker.ts: the bytes of a disk, in order. */
export interface ReadTask {
  /** For messages. */
  readonly disk: string;
  readonly extents: SharedExtentMap;
  readonly sources: readonly ReaderSource[];
  /** A file gets holes for zeros; a pipe gets every byte; nothing: only the sum is wanted. */
  readonly into: ({ readonly kind: 'file' | 'pipe' } & OpenOutput) | { readonly kind: 'nothing' };
  /** A BigInt64Array: see DONE and STOP. */
  readonly control: SharedArrayBuffer;
}

/** Work of write-worker.ts: what comes out of a pipe, into a file. */
export interface WriteTask {
  readonly from: number;
  readonly into: OpenOutput;
}

/** Slots of the control array: bytes of the disk that are done; not 0 when the thread shall stop. */
export const DONE = 0;
export const STOP = 1;

/** A thread's last message. */
export type ThreadResult =
  | {
      readonly kind: 'done';
      /** Bytes of what was read or written. */
      readonly size: number;
      /** Hex digits of the SHA-256 of it. */
      readonly sha256: string;
    }
  | {
      readonly kind: 'failure';
      readonly message: string;
      readonly hint: string | undefined;
      /** The system's, if it was the output that could not be written. */
      readonly outputCode?: string | undefined;
    };
