import { parentPort, workerData } from 'node:worker_threads';
import { createHasher } from '../chunks/chunk-hash.js';
import { RateLimit, type SharedRate } from '../content-index/rate-limit.js';
import { scanDisk } from '../content-index/scan.js';
import type { ChunkTree } from '../fuse/chunk-tree.js';
import { DiskView } from '../fuse/disk-view.js';

/** What a scanner gets from its daemon. */
export interface ScanWork {
  readonly tree: ChunkTree;
  /** What all scanners together may read. */
  readonly rate: SharedRate | undefined;
}

/** Resolves the chunks of all disks, one disk after the other, sharing each with the other scanners. */
const hasher = await createHasher();
const { tree, rate } = workerData as ScanWork;
const limit = rate === undefined ? undefined : new RateLimit(rate);
for (const disk of tree.disks) scanDisk(new DiskView(disk, hasher).resolver, limit);
// The end of the thread comes later.
parentPort?.postMessage('done');
