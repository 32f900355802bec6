import * as fs from 'node:fs';
import * as os from 'node:os';
import * as path from 'node:path';
import { directoryCount, geometry } from '../../src/chunks/geometry.js';
import { diskPart } from '../../src/chunks/inodes.js';
import { type LayoutKind, layoutOf } from '../../src/chunks/layout.js';
import { createRows } from '../../src/content-index/rows.js';
import type { SessionTimes } from '../../src/content-index/stable-times.js';
import type { ChunkTree, TreeDisk } from '../../src/fuse/chunk-tree.js';
import { ExtentMapBuilder } from '../../src/image/extent-map-builder.js';

export const CHUNK = 4096;
export const SNAPSHOT = 1_700_000_000;
export const MANIFEST = '{"format": "chunkmount-tree"}\n';
export const MANIFEST_INODE = 2;

const TIMES: SessionTimes = { snapshot: SNAPSHOT, newest: 0, unsettled: 0 };

/** How the tree shows its disks; by default as chunkmount does. */
export interface Look {
  readonly layout?: LayoutKind;
  readonly skipZeros?: boolean;
}

/** A piece of a disk: bytes in its image, or that many bytes which no image holds. */
export type Piece = Buffer | number;

/** Bytes that are not zero and differ from place to place. */
export function noise(length: number, seed = 1): Buffer {
  const bytes = Buffer.alloc(length);
  let state = seed;
  for (let i = 0; i < length; i++) {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    bytes[i] = (state >>> 24) | 1;
  }
  return bytes;
}

export function contentOf(pieces: readonly Piece[]): Buffer {
  return Buffer.concat(pieces.map((piece) => (typeof piece === 'number' ? Buffer.alloc(piece) : piece)));
}

/** A data chunk, a chunk whose zeros are stored, a hole, a short last chunk. */
export const SAMPLE_VDA: readonly Piece[] = [noise(CHUNK), Buffer.alloc(CHUNK), CHUNK, noise(100, 2)];
/** Two directories: 256 chunks and 1. */
export const SAMPLE_VDB: readonly Piece[] = [256 * CHUNK, noise(1, 3)];

/** Real trees on real image files, which `remove` takes away again. */
export class SampleTrees {
  readonly #directory = fs.mkdtempSync(path.join(os.tmpdir(), 'chunkmount-fuse-'));
  readonly #descriptors: number[] = [];

  tree(disks: Readonly<Record<string, readonly Piece[]>>, chunkSize = CHUNK, look: Look = {}): ChunkTree {
    return {
      uid: 7,
      gid: 8,
      fileMode: 0o400,
      directoryMode: 0o500,
      rootMtime: SNAPSHOT + 1,
      files: [
        {
          name: 'manifest.json',
          inode: MANIFEST_INODE,
          mtime: SNAPSHOT + 2,
          mtimeNs: 345_000_001,
          content: Buffer.from(MANIFEST),
        },
        this.#largeFile(),
      ],
      disks: Object.entries(disks).map(([target, pieces]) => this.#disk(target, pieces, chunkSize, look)),
    };
  }

  /** The image file of a disk. */
  image(target: string): string {
    return path.join(this.#directory, `${target}.img`);
  }

  remove(): void {
    for (const fd of this.#descriptors) fs.closeSync(fd);
    fs.rmSync(this.#directory, { recursive: true });
  }

  #open(file: string): number {
    const fd = fs.openSync(file, 'r');
    this.#descriptors.push(fd);
    return fd;
  }

  /** A file at the top that is not held in memory. */
  #largeFile() {
    const file = path.join(this.#directory, 'state');
    fs.writeFileSync(file, 'memory state');
    return {
      name: 'state.bin',
      inode: 5,
      mtime: SNAPSHOT,
      mtimeNs: 0,
      content: { fd: this.#open(file), size: 12 },
    };
  }

  #disk(target: string, pieces: readonly Piece[], chunkSize: number, look: Look): TreeDisk {
    const file = this.image(target);
    fs.writeFileSync(file, Buffer.concat(pieces.filter((piece) => typeof piece !== 'number')));
    const extents = new ExtentMapBuilder();
    let offset = 0;
    for (const piece of pieces) {
      if (typeof piece === 'number') {
        extents.addZeros(piece);
      } else {
        extents.addData(piece.length, 0, offset);
        offset += piece.length;
      }
    }
    const cut = geometry(extents.end, chunkSize);
    return {
      target,
      part: diskPart(target),
      geometry: cut,
      directory: layoutOf(look.layout ?? 'chunkmount').diskDirectory('demo', target),
      layout: look.layout ?? 'chunkmount',
      skipZeros: look.skipZeros ?? false,
      rows: createRows(cut.chunkCount),
      times: TIMES,
      extents: extents.finish().shared,
      sources: [{ fd: this.#open(file), path: file, size: offset }],
      stored: undefined,
      sumsMtime: SNAPSHOT,
      directoryMtime: SNAPSHOT - 10,
      directoryMtimes: new Uint32Array(directoryCount(cut)).fill(SNAPSHOT - 20),
      compareDirectories: false,
    };
  }
}
