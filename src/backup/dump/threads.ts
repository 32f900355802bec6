import { Worker } from 'node:worker_threads';
import { type ChunkmountError, failed, messageOf } from '../../errors.js';
import { scriptUrl } from '../../host/program-files.js';
import type { Reporter } from '../../report/reporter.js';
import { DONE, type ReadTask, STOP, type ThreadResult, type WriteTask } from './task.js';

const TICK_MS = 200;

/** Runs a worker thread to its end. Never rejects. */
function runThread(script: URL, task: ReadTask | WriteTask): Promise<ThreadResult> {
  return new Promise((resolve) => {
    let result: ThreadResult = { kind: 'failure', message: 'a worker thread ended early', hint: undefined };
    const worker = new Worker(script, { workerData: task });
    worker.once('message', (message: ThreadResult) => {
      result = message;
    });
    worker.once('error', (error) => {
      result = { kind: 'failure', message: `a worker thread died: ${messageOf(error)}`, hint: undefined };
    });
    // Only then does it use none of its descriptors any more.
    worker.once('exit', () => resolve(result));
  });
}

/** Writes what comes out of a pipe into a file, until all who write to the pipe have closed it. */
export function runWriter(task: WriteTask): Promise<ThreadResult> {
  return runThread(scriptUrl('backup/dump/write-worker.js'), task);
}

export interface ReadRequest extends Omit<ReadTask, 'control'> {
  /** Bytes. */
  readonly size: number;
  /** Name of the progress bar. */
  readonly label: string;
  readonly reporter: Reporter;
  /** Makes it stop after the piece that it is at. */
  readonly signal?: AbortSignal | undefined;
}

/** Reads a disk, showing the progress. */
export async function runReader(request: ReadRequest): Promise<ThreadResult> {
  const { size, label, reporter, signal, ...task } = request;
  const control = new SharedArrayBuffer(2 * BigInt64Array.BYTES_PER_ELEMENT);
  const counters = new BigInt64Array(control);
  const progress = reporter.progress(label, size);
  let shown = 0;
  const show = () => {
    const done = Number(Atomics.load(counters, DONE));
    if (done > shown) progress.advance(done - shown);
    shown = done;
  };
  const stop = () => Atomics.store(counters, STOP, 1n);
  if (signal?.aborted === true) stop();
  signal?.addEventListener('abort', stop);
  const timer = setInterval(show, TICK_MS);
  try {
    return await runThread(scriptUrl('backup/dump/read-worker.js'), { ...task, control });
  } finally {
    clearInterval(timer);
    signal?.removeEventListener('abort', stop);
    show();
    progress.end();
  }
}

export function failureOf(result: Extract<ThreadResult, { kind: 'failure' }>): ChunkmountError {
  return failed(result.message, { hint: result.hint });
}
