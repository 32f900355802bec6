import * as fs from 'node:fs';
import { scriptUrl } from '../host/program-files.js';
import type { Reporter } from '../report/reporter.js';
import type { ChunkSource } from './chunk-source.js';
import { type ChunkDamage, DamageError } from './damage.js';
import type { RestoreTask } from './restore-worker.js';
import { openDirect, type WritableTarget } from './target-writer.js';
import { blockChunks, WorkQueue } from './work-queue.js';
import { runPool } from './worker-pool.js';

export interface WriteRequest extends Pick<RestoreTask, 'compareBelow' | 'rest' | 'keepGoing'> {
  /** Open for reading and writing. */
  readonly targetFd: number;
  /** What to call the target in errors. */
  readonly target: string;
  /** Write past the page cache, where that can be done: what is written is not read again soon. */
  readonly direct: boolean;
  readonly source: ChunkSource;
  readonly reporter: Reporter;
  readonly signal: AbortSignal;
  /**
   * Called now and then, and at the end, also when it fails. Chunks from `reached` on have not been written by us; `written`: how many
   * have been, or were being.
   */
  readonly onTick?: (reached: number, written: number) => void;
}

/** What became of the chunks of a disk. */
export interface WriteResult {
  readonly written: number;
  /** Were in the target already. */
  readonly unchanged: number;
  /** All zeros, and not written because their place is. */
  readonly zero: number;
  readonly damage: readonly ChunkDamage[];
  readonly damageCount: number;
  /** No chunk from this one on has been written by us. */
  readonly reached: number;
}

/**
 * Writes the chunks of a source to their places in an open file or block device that is as large as the disk, with several
 * threads; each chunk is checked first. Returns early when `signal` is aborted. Throws DamageError for the first damaged
 * chunk, unless `keepGoing`. Does not sync.
 */
export async function writeChunks(request: WriteRequest): Promise<WriteResult> {
  const directFd = request.direct ? openDirect(request.targetFd) : undefined;
  try {
    return await writeTo({ fd: request.targetFd, directFd, name: request.target }, request);
  } finally {
    if (directFd !== undefined) fs.closeSync(directFd);
  }
}

async function writeTo(target: WritableTarget, request: WriteRequest): Promise<WriteResult> {
  const { source, reporter, signal, onTick, compareBelow, rest, keepGoing } = request;
  const { disk } = source;
  const queue = WorkQueue.create(disk.chunkCount, blockChunks(disk.chunkSize));
  const { damage, damageCount } = await runPool({
    worker: scriptUrl('restore/restore-worker.js'),
    task: {
      target,
      compareBelow,
      rest,
      keepGoing,
      source: source.share(),
      queue: queue.shared,
    } satisfies RestoreTask,
    queue,
    disk,
    label: `restoring ${disk.target}`,
    reporter,
    signal,
    ...(onTick === undefined ? {} : { onTick: () => onTick(queue.reached, queue.counted('written')) }),
  });
  const [first] = damage;
  if (first !== undefined && !request.keepGoing) throw new DamageError(source.root, first);
  return {
    written: queue.counted('written'),
    unchanged: queue.counted('unchanged'),
    zero: queue.counted('zero'),
    damage,
    damageCount,
    reached: queue.reached,
  };
}
