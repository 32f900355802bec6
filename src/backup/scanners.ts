import { Worker } from 'node:worker_threads';
import { type SharedRate, sharedRate } from '../content-index/rate-limit.js';
import { messageOf } from '../errors.js';
import type { ChunkTree } from '../fuse/chunk-tree.js';
import { scriptUrl } from '../host/program-files.js';

/** Two keep two cores busy. */
const SCANNERS = 2;

/** What one scanner has read by then is not worth the start of another. */
const OTHERS_AFTER_MS = 500;

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

/**
 * The threads that resolve the chunks which nobody asks for. The first loads what it needs at once; none reads anything before `begin`.
 * The others come at once where a disk is read whole, else when there is more to read than the first has done in a moment.
 */
export class Scanners {
  /** When all of them have ended; so never without `begin`. */
  readonly ended: Promise<void>;
  #resolveEnded!: () => void;
  #working = 0;
  readonly #begun = new Int32Array(new SharedArrayBuffer(4));
  readonly #first: Worker;
  #others: NodeJS.Timeout | undefined;

  constructor() {
    this.ended = new Promise((resolve) => {
      this.#resolveEnded = resolve;
    });
    this.#first = this.#start();
  }

  #start(): Worker {
    const resourceLimits = { maxYoungGenerationSizeMb: YOUNG_GENERATION_MB };
    const worker = new Worker(scriptUrl('backup/scan-worker.js'), { resourceLimits });
    this.#working++;
    // A scanner that fails leaves its chunks to whoever asks for them.
    worker.on('error', (error) => console.error(`scanner: ${messageOf(error)}`));
    void new Promise<void>((resolve) => {
      worker.on('message', () => resolve());
      worker.on('exit', () => resolve());
    }).then(() => this.#end());
    return worker;
  }

  #end(): void {
    this.#working--;
    if (this.#working > 0) return;
    clearTimeout(this.#others);
    this.#resolveEnded();
  }

  /** What they are to resolve. `bandwidth`: bytes a second that they may read together. */
  open(tree: ChunkTree, bandwidth: number | undefined): void {
    const rate = bandwidth === undefined ? undefined : sharedRate(bandwidth);
    const work: ScanWork = { tree, rate, begun: this.#begun };
    this.#first.postMessage(work);
    const readsAll = tree.disks.some(({ keep }) => keep === undefined);
    this.#others = setTimeout(
      () => {
        for (let number = 1; number < SCANNERS; number++) this.#start().postMessage(work);
      },
      readsAll ? 0 : OTHERS_AFTER_MS,
    );
  }

  begin(): void {
    Atomics.store(this.#begun, 0, 1);
    Atomics.notify(this.#begun, 0);
  }
}
