import { parentPort, workerData } from 'node:worker_threads';
import { createHasher } from '../chunks/chunk-hash.js';
import { scanDisk } from '../content-index/scan.js';
import type { ChunkTree } from '../fuse/chunk-tree.js';
import { DiskView } from '../fuse/disk-view.js';

/** Resolves the chunks of all disks, one disk after the other, sharing each with the other scanners. */
const hasher = await createHasher();
for (const disk of (workerData as ChunkTree).disks) scanDisk(new DiskView(disk, hasher).resolver);
// The end of the thread comes later.
parentPort?.postMessage('done');
