import { parentPort } from 'node:worker_threads';
import { ChunkmountError, messageOf } from '../errors.js';
import { type ChunkDamage, DamageError } from './damage.js';
import type { WorkQueue } from './work-queue.js';
import type { WorkerMessage } from './worker-pool.js';

export function tell(message: WorkerMessage): void {
  parentPort?.postMessage(message);
}

export interface LoopOptions {
  readonly queue: WorkQueue;
  /** Called for each chunk. A DamageError that it throws is told; anything else ends all workers. */
  readonly work: (chunk: number) => void;
  /** Called before the first chunk of each block. */
  readonly onBlock?: (first: number) => void;
  /** Called after the last chunk of each block, also of one that was left half-way. */
  readonly onBlockEnd?: () => void;
  /** Called after a damage was told; undefined: it ends all workers. */
  readonly onDamage?: ((damage: ChunkDamage) => void) | undefined;
}

/** What a worker thread does: claims blocks until none are left, and tells what is wrong. */
export function workOff(options: LoopOptions): void {
  const { queue } = options;
  try {
    for (let block = queue.claim(); block !== undefined; block = queue.claim()) {
      options.onBlock?.(block.first);
      for (let chunk = block.first; chunk < block.end && !queue.stopped; chunk++) {
        workOn(chunk, options);
        queue.count('done');
      }
      options.onBlockEnd?.();
    }
  } catch (error) {
    queue.stop();
    const hint = error instanceof ChunkmountError ? error.hint : undefined;
    tell({ kind: 'failure', message: messageOf(error), ...(hint === undefined ? {} : { hint }) });
  }
}

function workOn(chunk: number, { queue, work, onDamage }: LoopOptions): void {
  try {
    work(chunk);
  } catch (error) {
    if (!(error instanceof DamageError)) throw error;
    tell({ kind: 'damage', damage: error.damage });
    if (onDamage === undefined) queue.stop();
    else onDamage(error.damage);
  }
}
