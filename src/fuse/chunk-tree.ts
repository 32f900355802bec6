import type { Geometry } from '../chunks/geometry.js';
import type { LayoutKind } from '../chunks/layout.js';
import type { KeepPlan } from '../content-index/audit.js';
import type { IndexHeader } from '../content-index/index-file.js';
import type { Rows } from '../content-index/rows.js';
import type { SessionTimes } from '../content-index/stable-times.js';
import type { SharedExtentMap } from '../image/extent-map.js';
import type { ReaderSource } from '../image/extent-reader.js';

/** One disk of a tree, as every thread that serves or scans it gets it: plain data and shared memory. */
export interface TreeDisk {
  readonly target: string;
  /** See chunks/inodes.ts. */
  readonly part: number;
  readonly geometry: Geometry;
  /** The disk's directory. */
  readonly directory: string;
  readonly layout: LayoutKind;
  /** Chunks of zeros are not in the tree. */
  readonly skipZeros: boolean;
  readonly rows: Rows;
  readonly times: SessionTimes;
  readonly extents: SharedExtentMap;
  /** Open for reading, by source number of the extent map. */
  readonly sources: readonly ReaderSource[];
  /** The previous session's index, if there is a usable one. */
  readonly stored: { readonly fd: number; readonly header: IndexHeader } | undefined;
  /** Descriptor: see content-index/change-log.ts. */
  readonly changeLog?: number | undefined;
  /** If a tracker says what did not change. */
  readonly keep?: KeepPlan | undefined;
  /** Of the sums file, if any of its lines may be new. */
  readonly sumsMtime: number;
  /** That of the last session's, if the tracker says that no line changed. It holds while the tracker is believed. */
  readonly unchangedSumsMtime?: number | undefined;
  /** Of the disk's directory, and of those that hold directories. */
  readonly directoryMtime: number;
  /** One a chunk directory. Shared memory: see DirectoryTimes. */
  readonly directoryMtimes: Uint32Array;
  /** Chunks of zeros were left out in the last session, too: see DirectoryTimes. */
  readonly compareDirectories: boolean;
}

/** A small file at the top of the tree: manifest, domain XML, NVRAM. */
export interface TreeFile {
  readonly name: string;
  readonly inode: number;
  readonly mtime: number;
  readonly mtimeNs: number;
  /** Where its bytes are: in memory, or in an open file (memory states can be large). */
  readonly content: Uint8Array | { readonly fd: number; readonly size: number };
}

/** All that is to be served of a session. */
export interface ChunkTree {
  readonly uid: number;
  readonly gid: number;
  readonly fileMode: number;
  readonly directoryMode: number;
  readonly rootMtime: number;
  readonly files: readonly TreeFile[];
  readonly disks: readonly TreeDisk[];
}
