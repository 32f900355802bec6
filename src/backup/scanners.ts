import { Worker } from 'node:worker_threads';
import { type SharedRate, sharedRate } from '../content-index/rate-limit.js';
import { messageOf } from '../errors.js';
import type { ChunkTree } from '../fuse/chunk-tree.js';
import { scriptUrl } from '../host/program-files.js';

/** Two keep two cores busy. */
const SCANNERS = 2;

/** As that of the threads which answer the kernel: they make little garbage, and memory is counted. */
const YOUNG_GENERATION_MB = 2;

/** What a scanner gets from its daemon, as a message. */
export interface ScanWork {
  readonly tree: ChunkTree;
  /** What all scanners together may read. */
  readonly rate: SharedRate | undefined;
  /** One element; not 0: begin. */
  readonly begun: Int32Array;
}

/** The threads that resolve the chunks which nobody asks for. They load what they need at once, and read nothing before `begin`. */
export class Scanners {
  /** When all of them have ended; so never without `begin`. */
  readonly ended: Promise<void>;
  readonly #begun = new Int32Array(new SharedArrayBuffer(4));
  readonly #workers: readonly Worker[];

  constructor() {
    const resourceLimits = { maxYoungGenerationSizeMb: YOUNG_GENERATION_MB };
    this.#workers = Array.from(
      { length: SCANNERS },
      () => new Worker(scriptUrl('backup/scan-worker.js'), { resourceLimits }),
    );
    const ends = this.#workers.map(
      (worker) =>
        new Promise<void>((resolve) => {
          // A scanner that fails leaves its chunks to whoever asks for them.
          worker.on('error', (error) => console.error(`scanner: ${messageOf(error)}`));
          worker.on('message', () => resolve());
          worker.on('exit', () => resolve());
        }),
    );
    this.ended = Promise.all(ends).then(() => {});
  }

  /** What they are to resolve. `bandwidth`: bytes a second that they may read together. */
  open(tree: ChunkTree, bandwidth: number | undefined): void {
    const rate = bandwidth === undefined ? undefined : sharedRate(bandwidth);
    const work: ScanWork = { tree, rate, begun: this.#begun };
    for (const worker of this.#workers) worker.postMessage(work);
  }

  begin(): void {
    Atomics.store(this.#begun, 0, 1);
    Atomics.notify(this.#begun, 0);
  }
}
