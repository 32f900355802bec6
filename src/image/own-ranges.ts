import type { MapLine } from './map-line.js';

/** Bytes of a disk from `start` up to `end`. */
export interface ByteRange {
  readonly start: number;
  readonly end: number;
}

/** Collects, from the lines of `qemu-img map` in order, what the uppermost image of a chain itself holds. */
export class OwnRanges {
  readonly #ranges: { start: number; end: number }[] = [];

  add({ start, length, depth }: MapLine): void {
    if (depth !== 0) return;
    const last = this.#ranges.at(-1);
    if (last?.end === start) last.end += length;
    else this.#ranges.push({ start, end: start + length });
  }

  /** In order; no two of them touch. */
  get ranges(): readonly ByteRange[] {
    return this.#ranges;
  }
}
