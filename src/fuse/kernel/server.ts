import { Worker } from 'node:worker_threads';
import { messageOf } from '../../errors.js';
import { scriptUrl } from '../../host/program-files.js';
import { createCounters, type Server, sumCounters } from '../transport.js';
import type { KernelMessage, KernelWork, KernelWorkerData } from './worker.js';

/** Two keep two cores busy; more keep a slow disk's reads from holding up metadata. */
const WORKERS = 3;

/**
 * The others come this long after the mount answers: the kernel hands requests to all in turn, so each of them has to warm up, and
 * a session of which little has changed is over by then.
 */
const OTHERS_AFTER_MS = 2_000;

/** Young generation of a worker's heap in MiB: it makes little garbage, and memory is counted. */
const YOUNG_GENERATION_MB = 2;

/** One of the threads. What it is told to serve it serves until the mount is gone, which is when it exits. */
class KernelThread {
  readonly counters = createCounters();
  readonly #worker: Worker;
  /** It may have requests that only it can answer. */
  #serving = false;
  readonly connected: Promise<void>;
  readonly exit: Promise<void>;
  readonly failure: Promise<never>;

  constructor(fd: number, factory: string) {
    const workerData: KernelWorkerData = { factory, fd, counters: this.counters };
    const resourceLimits = { maxYoungGenerationSizeMb: YOUNG_GENERATION_MB };
    const worker = new Worker(scriptUrl('fuse/kernel/worker.js'), { workerData, resourceLimits });
    this.#worker = worker;
    this.connected = new Promise((resolve) => {
      worker.on('message', (message: KernelMessage) => {
        this.#serving = true;
        if (message === 'connected') resolve();
      });
    });
    this.exit = new Promise((resolve) => worker.on('exit', () => resolve()));
    this.failure = new Promise<never>((_, reject) => worker.on('error', reject));
    this.failure.catch(() => {}); // It shows in what it serves.
  }

  get serving(): boolean {
    return this.#serving;
  }

  serve(work: KernelWork): void {
    this.#worker.postMessage(work);
  }
}

/**
 * Threads that serve a file system on an open /dev/fuse. The first loads what it needs at once, and waits to be told what is served.
 * From then on they sit in blocking reads: the process can only exit once the mount is gone (or by SIGKILL), see fuse-facts.
 */
export class KernelThreads {
  readonly #threads: [KernelThread, ...KernelThread[]];

  /** `factory`: as in FilesystemSource. */
  constructor(
    private readonly fd: number,
    private readonly factory: string,
  ) {
    this.#threads = [new KernelThread(fd, factory)];
  }

  /** Serves what the factory makes of `data`, on a mount that is there or about to be. */
  serve(data: unknown, directIo: boolean): Server {
    const work: KernelWork = { data, directIo };
    const [first] = this.#threads;
    first.serve(work);
    const ended = new Promise<void>((resolve, reject) => {
      first.failure.catch(reject);
      let others: NodeJS.Timeout | undefined;
      void first.connected.then(() => {
        others = setTimeout(() => this.#addOthers(work, reject), OTHERS_AFTER_MS);
      });
      void first.exit
        .then(() => {
          clearTimeout(others);
          return Promise.all(this.#threads.map(({ exit }) => exit));
        })
        .then(() => resolve());
    });
    // Whoever waits for `connected` gets this error there.
    ended.catch(() => {});
    return {
      connected: Promise.race([first.connected, first.failure]),
      ended,
      counters: () => sumCounters(this.#threads.map(({ counters }) => counters)),
    };
  }

  /** `fail`: what to do about one that fails while it serves. Without those that do not come so far the first serves as well. */
  #addOthers(work: KernelWork, fail: (error: unknown) => void): void {
    for (let number = 1; number < WORKERS; number++) {
      const thread = new KernelThread(this.fd, this.factory);
      this.#threads.push(thread);
      thread.failure.catch((error) => {
        if (thread.serving) fail(error);
        else console.error(`there is a thread less to serve: ${messageOf(error)}`);
      });
      thread.serve(work);
    }
  }
}
