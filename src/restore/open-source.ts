import type { ManifestDisk } from '../chunks/manifest.js';
import { ChunkmountError, systemCode } from '../errors.js';
import { ChunkSource, NONE } from './chunk-source.js';
import { readSums, type Sums } from './sums.js';
import { type Tree, unreadable } from './tree.js';
import { isWrongType, openDirectory } from './tree-files.js';

export interface OpenOptions {
  /** Open it even if the sums file is missing or damaged; the chunks concerned are then `unverified`. */
  readonly evenWithoutSums?: boolean;
}

/**
 * Opens the disk called `target`. Throws a usage error if there is none, and an error of kind `integrity` if its sums
 * file is missing or damaged, unless told to go on without. The tree must stay open.
 */
export async function openSource(
  tree: Tree,
  target: string,
  options: OpenOptions = {},
): Promise<ChunkSource> {
  const disk = tree.disk(target);
  const sums = readSums(tree, disk);
  const [problem] = sums.problems;
  if (problem !== undefined && options.evenWithoutSums !== true) throw problem;
  return sourceWithSums(tree, disk, sums);
}

/** Opens a disk whose sums have been read before. Throws if its directory cannot be opened: kind `integrity` if it is a link. */
export async function sourceWithSums(
  tree: Tree,
  disk: ManifestDisk,
  { hashes, lost, skipped, none }: Sums,
): Promise<ChunkSource> {
  const directory = openDiskDirectory(tree, disk);
  return ChunkSource.create(
    { root: tree.root, disk, sums: { hashes, lost, skipped, none }, directory },
    true,
  );
}

function openDiskDirectory(tree: Tree, disk: ManifestDisk): number {
  try {
    return openDirectory(tree.fd, disk.directory);
  } catch (error) {
    if (systemCode(error) === 'ENOENT') return NONE;
    if (!isWrongType(error)) throw unreadable(`${tree.root}/${disk.directory}`, error);
    throw new ChunkmountError('integrity', `${tree.root}/${disk.directory} is a link or no directory`, {
      hint: 'a tree holds plain files and directories only; take the directory from another copy of this backup',
      cause: error,
    });
  }
}
