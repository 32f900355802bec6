import type { ChunkHasher } from '../../src/chunks/chunk-hash.js';
import { geometry } from '../../src/chunks/geometry.js';
import type { StoredIndex } from '../../src/content-index/index-file.js';
import { type DiskReader, Resolver, type ZeroMap } from '../../src/content-index/resolver.js';
import { createRows, type Rows } from '../../src/content-index/rows.js';
import { CHUNK, hasher } from './sample-index.js';

export const TIMES = { snapshot: 1000, newest: 900, unsettled: 0 };
export const NO_ZEROS: ZeroMap = { isZero: () => false };

/** A disk in memory whose chunks in `bad` cannot be read. */
export class MemoryDisk implements DiskReader {
  readonly reads: [position: number, length: number][] = [];

  constructor(
    readonly bytes: Buffer,
    readonly bad: readonly number[] = [],
  ) {}

  read(position: number, length: number, buffer: Uint8Array, offset: number): void {
    this.reads.push([position, length]);
    const touches = (chunk: number) => chunk * CHUNK < position + length && (chunk + 1) * CHUNK > position;
    if (this.bad.some(touches)) throw new Error('bad sector');
    buffer.set(this.bytes.subarray(position, position + length), offset);
  }
}

export function noise(length: number): Buffer {
  const bytes = Buffer.alloc(length);
  for (let i = 0; i < length; i++) bytes[i] = (Math.imul(i + 1, 2654435761) >>> 24) | 1;
  return bytes;
}

export function withByte(length: number, position: number): Buffer {
  const bytes = Buffer.alloc(length);
  bytes[position] = 1;
  return bytes;
}

interface Case {
  readonly reader: MemoryDisk;
  readonly rows: Rows;
  readonly resolver: Resolver;
}

interface Changes {
  bad?: readonly number[];
  zeroMap?: ZeroMap;
  hash?: ChunkHasher;
  stored?: StoredIndex;
  chunkSize?: number;
}

export function onDisk(bytes: Buffer, changes: Changes = {}): Case {
  const { bad, zeroMap = NO_ZEROS, hash = hasher, stored, chunkSize = CHUNK } = changes;
  const disk = geometry(bytes.length, chunkSize);
  const reader = new MemoryDisk(bytes, bad);
  const rows = createRows(disk.chunkCount);
  const resolver = new Resolver(disk, rows, reader, zeroMap, hash, TIMES, stored);
  return { reader, rows, resolver };
}

export function hashOf(bytes: Uint8Array): readonly [number, number] {
  const into = new Uint32Array(2);
  hasher.hash(bytes, into, 0);
  return [into[0]!, into[1]!];
}
