import { availableParallelism } from 'node:os';
import { Worker } from 'node:worker_threads';
import type { Geometry } from '../chunks/geometry.js';
import { failed, messageOf } from '../errors.js';
import type { Reporter } from '../report/reporter.js';
import type { ChunkDamage } from './damage.js';
import { byPath, type FileProblem } from './problem.js';
import type { WorkQueue } from './work-queue.js';

/** One can compute while the other waits for the disk; more than eight only make it seek. */
const MIN_WORKERS = 2;
const MAX_WORKERS = 8;
/** Less work than this is done before another thread has started. */
const BLOCKS_PER_WORKER = 4;
const TICK_MS = 200;
/** A tree with more damaged chunks than this is a ruin; the rest is counted, not listed. */
export const MAX_LISTED = 100_000;

/** What worker threads tell us; everything else goes through the queue's counters. */
export type WorkerMessage =
  | { readonly kind: 'damage'; readonly damage: ChunkDamage }
  | { readonly kind: 'problem'; readonly problem: FileProblem }
  | { readonly kind: 'failure'; readonly message: string; readonly hint?: string };

export interface PoolRequest {
  /** The worker's module. */
  readonly worker: URL;
  /** Given to each worker as its workerData. */
  readonly task: object;
  readonly queue: WorkQueue;
  readonly disk: Geometry;
  /** Name of the progress bar. */
  readonly label: string;
  readonly reporter: Reporter;
  readonly signal: AbortSignal;
  /** Called now and then while work goes on. */
  readonly onTick?: () => void;
}

export interface PoolResult {
  /** In order of chunk, at most MAX_LISTED. */
  readonly damage: readonly ChunkDamage[];
  readonly damageCount: number;
  /** Of directories of chunks. In order of path, at most MAX_LISTED. */
  readonly problems: readonly FileProblem[];
}

/** Collects what the workers say. */
class Findings {
  readonly damage: ChunkDamage[] = [];
  damageCount = 0;
  readonly problems: FileProblem[] = [];
  failure: Extract<WorkerMessage, { kind: 'failure' }> | undefined;

  take(message: WorkerMessage): void {
    if (message.kind === 'failure') {
      this.failure ??= message;
    } else if (message.kind === 'problem') {
      if (this.problems.length < MAX_LISTED) this.problems.push(message.problem);
    } else {
      this.damageCount++;
      if (this.damage.length < MAX_LISTED) this.damage.push(message.damage);
    }
  }

  result(): PoolResult {
    const { damage, damageCount, problems } = this;
    return {
      damage: damage.sort((a, b) => a.chunk - b.chunk),
      damageCount,
      problems: problems.sort(byPath),
    };
  }
}

function runWorker(request: PoolRequest, findings: Findings): Promise<void> {
  return new Promise((resolve) => {
    const worker = new Worker(request.worker, { workerData: request.task });
    worker.on('message', (message: WorkerMessage) => findings.take(message));
    worker.on('error', (error) => {
      findings.take({ kind: 'failure', message: `a worker thread died: ${messageOf(error)}` });
      request.queue.stop();
    });
    worker.on('exit', () => resolve());
  });
}

/** Shows how far the queue is, in bytes of the disk. */
function progressReporter(request: PoolRequest): () => void {
  const { queue, disk } = request;
  const task = request.reporter.progress(request.label, disk.size);
  let shown = 0;
  const show = () => {
    const bytes = Math.min(queue.counted('done') * disk.chunkSize, disk.size);
    if (bytes > shown) task.advance(bytes - shown);
    shown = bytes;
    request.onTick?.();
  };
  const timer = setInterval(show, TICK_MS);
  return () => {
    clearInterval(timer);
    show();
    task.end();
  };
}

function workerCount(queue: WorkQueue): number {
  const most = Math.min(Math.max(MIN_WORKERS, availableParallelism()), MAX_WORKERS);
  return Math.min(Math.ceil(queue.blockCount / BLOCKS_PER_WORKER), most);
}

/**
 * Lets worker threads work off the queue. Returns when all have ended, also when they were stopped by `signal`, which the caller
 * asks. Throws when one failed for a reason that is not the tree's.
 */
export async function runPool(request: PoolRequest): Promise<PoolResult> {
  const findings = new Findings();
  const { queue, signal } = request;
  const stop = () => queue.stop();
  if (signal.aborted) stop();
  signal.addEventListener('abort', stop);
  const endProgress = progressReporter(request);
  try {
    await Promise.all(Array.from({ length: workerCount(queue) }, () => runWorker(request, findings)));
  } finally {
    signal.removeEventListener('abort', stop);
    endProgress();
  }
  if (findings.failure !== undefined) throw failed(findings.failure.message, { hint: findings.failure.hint });
  return findings.result();
}
