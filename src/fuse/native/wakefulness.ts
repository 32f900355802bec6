import { availableParallelism } from 'node:os';

/** Longer than a reader takes to ask for the next file. */
const AWAKE_MS = 1;

/**
 * Keeps the main thread from going to sleep between requests that follow each other closely: on a virtual machine waking it takes
 * longer than answering. `rsync -an` of 16384 chunks takes 1.8 instead of 4.2 s, and less processor time, too.
 */
export class Wakefulness {
  #until = 0;
  #awake = false;
  /** With one processor whoever asks could not run meanwhile. */
  readonly #possible = availableParallelism() > 1;

  /** To be called at each request. */
  prolong(): void {
    if (!this.#possible) return;
    this.#until = performance.now() + AWAKE_MS;
    if (this.#awake) return;
    this.#awake = true;
    setImmediate(this.#poll);
  }

  /** Each turn of the event loop looks for requests without waiting as long as there is another one to come. */
  readonly #poll = (): void => {
    this.#awake = performance.now() < this.#until;
    if (this.#awake) setImmediate(this.#poll);
  };
}
