/** In place of a source number: the extent reads as zeros. */
export const ZERO_SOURCE = 255;

/** What a worker thread needs to see the same map; can be posted or given as workerData. */
export interface SharedExtentMap {
  readonly buffer: SharedArrayBuffer;
  readonly count: number;
}

/** Bytes that a map of `count` extents takes in memory: starts and the disk's end, file offsets, source numbers. */
export function extentMapBytes(count: number): number {
  return (count + 1) * 8 + count * 8 + count;
}

/**
 * Where each byte of a disk is: a gapless, ordered list of extents from 0 to the disk's size, each of which is zero or lies
 * at an offset of one source. Numbers are bytes. Read-only and in shared memory; each thread has its own instance.
 */
export class ExtentMap {
  readonly count: number;
  /** Size of the disk in bytes. */
  readonly size: number;
  readonly #buffer: SharedArrayBuffer;
  /** Begin of each extent; one more entry for the disk's end. */
  readonly #starts: Float64Array;
  readonly #offsets: Float64Array;
  readonly #sources: Uint8Array;
  /** The extent found last: reads are mostly sequential. */
  #last = 0;
  #dataBytes = -1;

  constructor(shared: SharedExtentMap) {
    const { buffer, count } = shared;
    this.count = count;
    this.#buffer = buffer;
    this.#starts = new Float64Array(buffer, 0, count + 1);
    this.#offsets = new Float64Array(buffer, (count + 1) * 8, count);
    this.#sources = new Uint8Array(buffer, (2 * count + 1) * 8, count);
    this.size = this.#starts[count]!;
  }

  get shared(): SharedExtentMap {
    return { buffer: this.#buffer, count: this.count };
  }

  /** Number of the extent that holds `position`, which must be at least 0 and below `size`. */
  find(position: number): number {
    const starts = this.#starts;
    const last = this.#last;
    if (position >= starts[last]!) {
      if (position < starts[last + 1]!) return last;
      if (position < starts[last + 2]!) {
        this.#last = last + 1;
        return last + 1;
      }
    }
    if (!(position >= 0 && position < this.size)) {
      throw new RangeError(`position ${position} is outside of a disk of ${this.size} bytes`);
    }
    let low = 0;
    let high = this.count;
    while (high - low > 1) {
      const middle = (low + high) >>> 1;
      if (starts[middle]! <= position) low = middle;
      else high = middle;
    }
    this.#last = low;
    return low;
  }

  startOf(extent: number): number {
    return this.#starts[extent]!;
  }

  endOf(extent: number): number {
    return this.#starts[extent + 1]!;
  }

  /** Number of the source that holds the extent, or ZERO_SOURCE. */
  sourceOf(extent: number): number {
    return this.#sources[extent]!;
  }

  /** Offset in the source of the extent's first byte. Means nothing for a zero extent. */
  offsetOf(extent: number): number {
    return this.#offsets[extent]!;
  }

  /** Whether the range, which must lie within the disk, is known to be zeros without reading it. */
  isZero(position: number, length: number): boolean {
    if (length === 0) return true;
    // Neighbouring zero extents are merged, so one extent has to hold it all.
    const extent = this.find(position);
    return this.#sources[extent] === ZERO_SOURCE && position + length <= this.#starts[extent + 1]!;
  }

  /** Bytes that have to be read; the rest is zeros. */
  get dataBytes(): number {
    if (this.#dataBytes < 0) {
      let bytes = 0;
      for (let extent = 0; extent < this.count; extent++) {
        if (this.#sources[extent] !== ZERO_SOURCE) bytes += this.endOf(extent) - this.startOf(extent);
      }
      this.#dataBytes = bytes;
    }
    return this.#dataBytes;
  }
}
