import * as fs from 'node:fs';
import * as os from 'node:os';
import * as path from 'node:path';
import { createHasher } from '../../src/chunks/chunk-hash.js';
import { CHUNKS_PER_DIRECTORY } from '../../src/chunks/geometry.js';
import { type IndexHeader, StoredIndex } from '../../src/content-index/index-file.js';
import { BLOCK_LOADED, createRows, type Rows } from '../../src/content-index/rows.js';
import { saveIndex } from '../../src/content-index/save-index.js';

export const CHUNK = 4096;
export const hasher = await createHasher();

/** A directory of index files, which `remove` takes away. */
export class SampleIndexes {
  readonly directory = fs.mkdtempSync(path.join(os.tmpdir(), 'chunkmount-index-'));
  readonly file = path.join(this.directory, 'vda.v1');

  remove(): void {
    fs.rmSync(this.directory, { recursive: true });
  }

  save(header: IndexHeader, rows: Rows, previous?: StoredIndex): void {
    saveIndex(this.file, header, rows, previous, hasher);
  }

  /** The stored index, which must be usable. */
  open(): StoredIndex {
    const stored = StoredIndex.open(this.file, hasher);
    if (!(stored instanceof StoredIndex)) throw new Error(stored ?? 'there is no index');
    return stored;
  }
}

export function header(chunkCount: number, changes: Partial<IndexHeader> = {}): IndexHeader {
  const directories = Math.ceil(chunkCount / CHUNKS_PER_DIRECTORY);
  return {
    chunkSize: CHUNK,
    chunkCount,
    diskSize: chunkCount * CHUNK,
    diskDirectoryMtime: 1111,
    directoryMtimes: Uint32Array.from({ length: directories }, (_, i) => 2222 + i),
    ...changes,
  };
}

/** Rows that are all known, each with values of its own. */
export function knownRows(count: number, firstMtime = 1_700_000_000): Rows {
  const rows = createRows(count);
  for (let chunk = 0; chunk < count; chunk++) {
    rows.hashes[chunk * 2] = Math.imul(chunk + 1, 0x9e3779b1) >>> 0;
    rows.hashes[chunk * 2 + 1] = ~chunk >>> 0;
    rows.mtimes[chunk] = firstMtime + chunk;
  }
  rows.blocks.fill(BLOCK_LOADED);
  return rows;
}

export function rowOf(rows: Rows, chunk: number): readonly [high: number, low: number, mtime: number] {
  return [rows.hashes[chunk * 2]!, rows.hashes[chunk * 2 + 1]!, rows.mtimes[chunk]!];
}
