import { workerData } from 'node:worker_threads';
import { createHasher } from '../chunks/chunk-hash.js';
import { scanDisk } from '../content-index/scan.js';
import { ChunkFilesystem } from '../fuse/chunk-filesystem.js';
import type { ChunkTree } from '../fuse/chunk-tree.js';

/** Resolves the chunks of all disks, one disk after the other, sharing each with the other scanners. */
for (const view of new ChunkFilesystem(workerData as ChunkTree, await createHasher()).views) {
  scanDisk(view.resolver);
}
