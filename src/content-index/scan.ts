import type { RateLimit } from './rate-limit.js';
import type { Resolver } from './resolver.js';
import {
  AUDITING,
  CURSOR,
  GENERATION,
  KEEP_NEXT,
  ROWS_PER_BLOCK,
  STOP,
  TRUST,
  TRUSTED,
  waitForChange,
} from './rows.js';

/** Bytes of disk that a scanner takes at a time: enough to read in sequence, and soon done when asked to stop. */
const BATCH_LENGTH = 4 * 1024 * 1024;

/**
 * Resolves batch after batch, sharing them with the other scanners of this disk, until all are taken or STOP is set. The samples of an
 * audit come first, then what need not be read. What `limit` says is waited for before chunks are claimed, so nobody else waits for it.
 */
export function scanDisk(resolver: Resolver, limit?: RateLimit): void {
  const { rows, disk } = resolver;
  const stopped = () => Atomics.load(rows.control, STOP) !== 0;
  if (!finishAudit(resolver, stopped, limit)) return;
  if (Atomics.load(rows.control, TRUST) === TRUSTED) keepAll(resolver, stopped);
  const length = limit === undefined ? BATCH_LENGTH : Math.min(BATCH_LENGTH, limit.bytesPerSecond / 4);
  const perBatch = Math.max(1, Math.floor(length / disk.chunkSize));
  const batches = Math.ceil(disk.chunkCount / perBatch);
  while (!stopped()) {
    const batch = Atomics.add(rows.control, CURSOR, 1);
    if (batch >= batches) return;
    const first = batch * perBatch;
    const end = Math.min(first + perBatch, disk.chunkCount);
    if (limit !== undefined && !limit.pay(resolver.bytesToRead(first, end), stopped)) return;
    resolver.resolveRange(first, end);
  }
}

/** Makes final what a tracker knows: in large steps, as nothing of it is read. */
function keepAll(resolver: Resolver, stopped: () => boolean): void {
  const { rows, disk } = resolver;
  while (!stopped()) {
    const first = Atomics.add(rows.control, KEEP_NEXT, 1) * ROWS_PER_BLOCK;
    if (first >= disk.chunkCount) return;
    resolver.keep(first, Math.min(first + ROWS_PER_BLOCK, disk.chunkCount));
  }
}

/** False: asked to stop. */
function finishAudit({ audit, disk, rows }: Resolver, stopped: () => boolean, limit?: RateLimit): boolean {
  while (!stopped()) {
    const generation = Atomics.load(rows.control, GENERATION);
    if (Atomics.load(rows.control, TRUST) !== AUDITING) return true;
    if (audit.next() === undefined) waitForChange(rows.control, generation);
    else if (limit === undefined || limit.pay(disk.chunkSize, stopped)) audit.step();
  }
  return false;
}
