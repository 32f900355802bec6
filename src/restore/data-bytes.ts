import type { ChunkSource } from './chunk-source.js';

/** Bytes of a disk in chunks that are not all zeros, by its sums. */
export function dataBytes(source: ChunkSource): number {
  let bytes = 0;
  for (let chunk = 0; chunk < source.disk.chunkCount; chunk++) {
    if (!source.isZero(chunk)) bytes += source.lengthOf(chunk);
  }
  return bytes;
}
