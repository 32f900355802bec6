import { Worker } from 'node:worker_threads';
import { scriptUrl } from '../../host/program-files.js';
import { createCounters, type FilesystemSource, type Server, sumCounters } from '../transport.js';
import type { KernelWorkerData } from './worker.js';

/** Two keep two cores busy; more keep a slow disk's reads from holding up metadata. */
const WORKERS = 3;

/** Young generation of a worker's heap in MiB: it makes little garbage, and memory is counted. */
const YOUNG_GENERATION_MB = 2;

/**
 * Serves a file system on an open /dev/fuse that is mounted, or about to be. Workers sit in blocking reads: the process can only
 * exit once the mount is gone (or by SIGKILL), see fuse-facts.
 */
export function serveKernel(fd: number, filesystem: FilesystemSource, directIo: boolean): Server {
  const counters = Array.from({ length: WORKERS }, createCounters);
  const workers = counters.map((own) => {
    const workerData: KernelWorkerData = { filesystem, fd, directIo, counters: own };
    return new Worker(scriptUrl('fuse/kernel/worker.js'), {
      workerData,
      resourceLimits: { maxYoungGenerationSizeMb: YOUNG_GENERATION_MB },
    });
  });
  const failure = new Promise<never>((_, reject) => {
    for (const worker of workers) worker.on('error', reject);
  });
  const connected = new Promise<void>((resolve) => {
    for (const worker of workers) worker.on('message', () => resolve());
  });
  const exits = workers.map((worker) => new Promise<void>((resolve) => worker.on('exit', () => resolve())));
  const ended = Promise.race([failure, Promise.all(exits).then(() => {})]);
  return { connected: Promise.race([connected, failure]), ended, counters: () => sumCounters(counters) };
}
