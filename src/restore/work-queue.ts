/** Positions in the shared array. The counters count chunks. */
const NEXT_BLOCK = 0;
const STOPPED = 1;
const COUNTERS = { done: 2, written: 3, unchanged: 4, zero: 5, verified: 6 } as const;
const LENGTH = 7;

export type Counter = keyof typeof COUNTERS;

/** A queue as it crosses thread borders. */
export interface SharedQueue {
  readonly control: Int32Array;
  readonly chunkCount: number;
  readonly blockChunks: number;
}

/** At most this many bytes of a disk are claimed at a time: enough for sequential reads, little enough to share the work. */
const BLOCK_BYTES = 16 * 1024 * 1024;

/** How many chunks a worker takes at a time. */
export function blockChunks(chunkSize: number): number {
  return Math.max(1, BLOCK_BYTES / chunkSize);
}

/**
 * Hands out the chunks of a disk to worker threads, in ascending blocks, and counts what became of them. Lives in shared memory.
 */
export class WorkQueue {
  constructor(readonly shared: SharedQueue) {}

  static create(chunkCount: number, blockChunks: number): WorkQueue {
    const control = new Int32Array(new SharedArrayBuffer(LENGTH * Int32Array.BYTES_PER_ELEMENT));
    return new WorkQueue({ control, chunkCount, blockChunks });
  }

  get blockCount(): number {
    return Math.ceil(this.shared.chunkCount / this.shared.blockChunks);
  }

  /** The next chunks to work on, from `first` up to but not including `end`; undefined when none are left or all shall stop. */
  claim(): { first: number; end: number } | undefined {
    if (this.stopped) return undefined;
    const first = (Atomics.add(this.shared.control, NEXT_BLOCK, 1) >>> 0) * this.shared.blockChunks;
    if (first >= this.shared.chunkCount) return undefined;
    return { first, end: Math.min(first + this.shared.blockChunks, this.shared.chunkCount) };
  }

  /** No chunk from this one on has been claimed by anybody. */
  get reached(): number {
    const blocks = Atomics.load(this.shared.control, NEXT_BLOCK) >>> 0;
    return Math.min(blocks * this.shared.blockChunks, this.shared.chunkCount);
  }

  /** Makes every worker stop before its next chunk. */
  stop(): void {
    Atomics.store(this.shared.control, STOPPED, 1);
  }

  get stopped(): boolean {
    return Atomics.load(this.shared.control, STOPPED) === 1;
  }

  count(counter: Counter): void {
    Atomics.add(this.shared.control, COUNTERS[counter], 1);
  }

  counted(counter: Counter): number {
    return Atomics.load(this.shared.control, COUNTERS[counter]) >>> 0;
  }
}
