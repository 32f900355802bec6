import { CHUNKS_PER_DIRECTORY, directoryCount, type Geometry } from './geometry.js';
import { parseHex } from './hex.js';

export const LAYOUT_KINDS = ['chunkmount', 'chunkfs'] as const;
export type LayoutKind = (typeof LAYOUT_KINDS)[number];

/**
 * Where the chunks of a disk lie below its directory. Part of the tree format. Every layout has 256 chunks in a directory, so
 * that directory i >> 8 holds chunk i. Directories have a rank: 0 holds chunks, rank r holds directories of rank r - 1,
 * and the disk's own directory has the rank `levels`. A directory of rank r is number i >> 8 (r + 1) among those of its rank.
 */
export interface Layout {
  readonly kind: LayoutKind;
  /** How many levels of directories are between the disk's and its chunks. */
  readonly levels: number;
  /** Characters of every chunk's path below the disk's directory. */
  readonly pathLength: number;
  /** How the directory of that tree and disk is called. */
  diskDirectory(tree: string, target: string): string;
  directoryName(rank: number, number: number): string;
  /** Number of the directory of rank `rank` that is called `name` in directory `parent`; -1 if the name is not canonical. */
  parseDirectoryName(rank: number, parent: number, name: string): number;
  /** What the names of all chunks of a directory begin with; two hex digits follow. */
  chunkPrefix(directory: number): string;
  /** Index of the chunk that is called `name` in a directory; -1 if the name is not canonical, or belongs into another one. */
  parseChunkName(directory: number, name: string): number;
}

/** `vda/0001a2/0001a2f3` */
const CHUNKMOUNT: Layout = {
  kind: 'chunkmount',
  levels: 1,
  pathLength: '0001a2/0001a2f3'.length,
  diskDirectory: (_, target) => target,
  directoryName: (_, number) => number.toString(16).padStart(6, '0'),
  parseDirectoryName: (_rank, _parent, name) => parseHex(name, 6),
  chunkPrefix: (directory) => directory.toString(16).padStart(6, '0'),
  parseChunkName: (directory, name) => {
    const index = parseHex(name, 8);
    return index >= 0 && Math.floor(index / CHUNKS_PER_DIRECTORY) === directory ? index : -1;
  },
};

/** `mail01_vda/00/00/00/00/00/01/a2/f3`: as chunkfs has it below its mountpoint, and virt-backup called that. */
const CHUNKFS: Layout = {
  kind: 'chunkfs',
  levels: 7,
  pathLength: '00/00/00/00/00/01/a2/f3'.length,
  diskDirectory: (tree, target) => `${tree}_${target}`,
  directoryName: (_, number) => HEX_BYTES[number % CHUNKS_PER_DIRECTORY]!,
  parseDirectoryName: (_, parent, name) => parseByte(parent, name),
  chunkPrefix: () => '',
  parseChunkName: (directory, name) => parseByte(directory, name),
};

const LAYOUTS: Readonly<Record<LayoutKind, Layout>> = { chunkmount: CHUNKMOUNT, chunkfs: CHUNKFS };

/** The last two digits of a chunk's name, by its place in its directory. */
export const HEX_BYTES = Array.from({ length: CHUNKS_PER_DIRECTORY }, (_, i) =>
  i.toString(16).padStart(2, '0'),
);

/** The same as numbers: two characters, the first in the low byte. */
export const HEX_TAILS = Uint16Array.from(
  HEX_BYTES,
  (digits) => digits.charCodeAt(0) | (digits.charCodeAt(1) << 8),
);

function parseByte(parent: number, name: string): number {
  const byte = parseHex(name, 2);
  return byte < 0 ? -1 : parent * CHUNKS_PER_DIRECTORY + byte;
}

export function layoutOf(kind: LayoutKind): Layout {
  return LAYOUTS[kind];
}

export function chunkName(layout: Layout, index: number): string {
  const directory = Math.floor(index / CHUNKS_PER_DIRECTORY);
  return layout.chunkPrefix(directory) + HEX_BYTES[index % CHUNKS_PER_DIRECTORY]!;
}

/** The names that lead from the disk's directory to chunk directory `directory`. */
export function directoryNames(layout: Layout, directory: number): string[] {
  const names: string[] = [];
  let number = directory;
  for (let rank = 0; rank < layout.levels; rank++) {
    names.unshift(layout.directoryName(rank, number));
    number = Math.floor(number / CHUNKS_PER_DIRECTORY);
  }
  return names;
}

/** `0001a2`: path of a chunk directory below its disk's. */
export function directoryPath(layout: Layout, directory: number): string {
  return directoryNames(layout, directory).join('/');
}

/** `0001a2/0001a2f3`: the chunk's path below its disk's directory. */
export function chunkPath(layout: Layout, index: number): string {
  const directory = Math.floor(index / CHUNKS_PER_DIRECTORY);
  return `${directoryPath(layout, directory)}/${chunkName(layout, index)}`;
}

/** The directories of rank `rank` - 1 that a directory holds: from `first` up to `end`. `rank` from 1 to `levels`. */
export function subdirectories(
  layout: Layout,
  disk: Geometry,
  rank: number,
  number: number,
): { first: number; end: number } {
  const count = directoryCount(disk, rank - 1);
  if (rank === layout.levels) return { first: 0, end: count };
  const first = number * CHUNKS_PER_DIRECTORY;
  return { first, end: Math.min(first + CHUNKS_PER_DIRECTORY, count) };
}
