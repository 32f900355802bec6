import type { ChunkRange } from './compare.js';

/**
 * A disk cut into cells of equally many chunks, each with the share of them that changed: from 0 to 1. The last cell may
 * stand for fewer chunks. `chunksPerCell` is a power of two.
 */
export interface DiskMap {
  readonly chunksPerCell: number;
  readonly cells: Float64Array;
}

/** Maps `chunks` chunks to at most `maxCells` cells. `ranges` must not overlap. */
export function diskMap(chunks: number, ranges: readonly ChunkRange[], maxCells: number): DiskMap {
  let chunksPerCell = 1;
  while (Math.ceil(chunks / chunksPerCell) > maxCells) chunksPerCell *= 2;
  const cells = new Float64Array(Math.ceil(chunks / chunksPerCell));
  for (const { first, count } of ranges) {
    const end = first + count;
    for (let cell = Math.floor(first / chunksPerCell); cell * chunksPerCell < end; cell++) {
      const from = Math.max(first, cell * chunksPerCell);
      const to = Math.min(end, (cell + 1) * chunksPerCell);
      cells[cell]! += to - from;
    }
  }
  for (let cell = 0; cell < cells.length; cell++) {
    cells[cell]! /= Math.min(chunksPerCell, chunks - cell * chunksPerCell);
  }
  return { chunksPerCell, cells };
}

/** Nothing changed, then a quarter of the chunks each. */
const SHADES = ['·', '░', '▒', '▓', '█'];

/** 0 for a cell in which nothing changed, then 1 to 4: any change at all is 1 at least. */
export function shade(share: number): number {
  return Math.ceil(share * (SHADES.length - 1));
}

/** A map in characters, `columns` cells a line. */
export function textMap({ cells }: DiskMap, columns: number): string[] {
  const lines: string[] = [];
  for (let start = 0; start < cells.length; start += columns) {
    lines.push([...cells.subarray(start, start + columns)].map((share) => SHADES[shade(share)]).join(''));
  }
  return lines;
}
