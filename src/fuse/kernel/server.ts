import { Worker } from 'node:worker_threads';
import { scriptUrl } from '../../host/program-files.js';
import { createCounters, type Server, sumCounters } from '../transport.js';
import type { KernelWork, KernelWorkerData } from './worker.js';

/** Two keep two cores busy; more keep a slow disk's reads from holding up metadata. */
const WORKERS = 3;

/** Young generation of a worker's heap in MiB: it makes little garbage, and memory is counted. */
const YOUNG_GENERATION_MB = 2;

/**
 * Threads that serve a file system on an open /dev/fuse. They load what they need at once, and wait to be told what they serve. From
 * then on they sit in blocking reads: the process can only exit once the mount is gone (or by SIGKILL), see fuse-facts.
 */
export class KernelThreads {
  readonly #counters = Array.from({ length: WORKERS }, createCounters);
  readonly #workers: readonly Worker[];
  readonly #failure: Promise<never>;
  readonly #exits: Promise<unknown>;

  /** `factory`: as in FilesystemSource. */
  constructor(fd: number, factory: string) {
    this.#workers = this.#counters.map((counters) => {
      const workerData: KernelWorkerData = { factory, fd, counters };
      return new Worker(scriptUrl('fuse/kernel/worker.js'), {
        workerData,
        resourceLimits: { maxYoungGenerationSizeMb: YOUNG_GENERATION_MB },
      });
    });
    this.#failure = new Promise<never>((_, reject) => {
      for (const worker of this.#workers) worker.on('error', reject);
    });
    this.#failure.catch(() => {}); // It shows in what they serve.
    this.#exits = Promise.all(
      this.#workers.map((worker) => new Promise<void>((resolve) => worker.on('exit', () => resolve()))),
    );
  }

  /** Serves what the factory makes of `data`, on a mount that is there or about to be. */
  serve(data: unknown, directIo: boolean): Server {
    const connected = new Promise<void>((resolve) => {
      for (const worker of this.#workers) worker.on('message', () => resolve());
    });
    const work: KernelWork = { data, directIo };
    for (const worker of this.#workers) worker.postMessage(work);
    const ended = Promise.race([this.#failure, this.#exits.then(() => {})]);
    // Whoever waits for `connected` gets this error there.
    ended.catch(() => {});
    return {
      connected: Promise.race([connected, this.#failure]),
      ended,
      counters: () => sumCounters(this.#counters),
    };
  }
}
