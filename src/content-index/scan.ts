import type { Resolver } from './resolver.js';
import { CURSOR, STOP } from './rows.js';

/** Bytes of disk that a scanner takes at a time: enough to read in sequence, and soon done when asked to stop. */
const BATCH_LENGTH = 4 * 1024 * 1024;

/** Resolves batch after batch, sharing them with the other scanners of this disk, until all are taken or STOP is set. */
export function scanDisk(resolver: Resolver): void {
  const { rows, disk } = resolver;
  const perBatch = Math.max(1, Math.floor(BATCH_LENGTH / disk.chunkSize));
  const batches = Math.ceil(disk.chunkCount / perBatch);
  while (Atomics.load(rows.control, STOP) === 0) {
    const batch = Atomics.add(rows.control, CURSOR, 1);
    if (batch >= batches) return;
    resolver.resolveRange(batch * perBatch, Math.min((batch + 1) * perBatch, disk.chunkCount));
  }
}
