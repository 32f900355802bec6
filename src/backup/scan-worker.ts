import { once } from 'node:events';
import { parentPort } from 'node:worker_threads';
import { createHasher } from '../chunks/chunk-hash.js';
import { RateLimit } from '../content-index/rate-limit.js';
import { scanDisk } from '../content-index/scan.js';
import { DiskView } from '../fuse/disk-view.js';
import type { ScanWork } from './scanners.js';

/** Resolves the chunks of all disks, one disk after the other, sharing each with the other scanners. */
const hasher = await createHasher();
const [{ tree, rate, begun }] = (await once(parentPort!, 'message')) as [ScanWork];
const limit = rate === undefined ? undefined : new RateLimit(rate);
const resolvers = tree.disks.map((disk) => new DiskView(disk, hasher).resolver);
Atomics.wait(begun, 0, 0);
for (const resolver of resolvers) scanDisk(resolver, limit);
// The end of the thread comes later.
parentPort?.postMessage('done');
