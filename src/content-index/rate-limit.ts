/** The longest that a thread sleeps before it looks whether it should stop. */
const SLICE_MS = 200;

/** Plain data: all threads that share a limit get the same. */
export interface SharedRate {
  readonly bytesPerSecond: number;
  /** One element: the time, in microseconds of CLOCK_MONOTONIC, from which the next bytes are free. */
  readonly next: BigInt64Array;
}

export function sharedRate(bytesPerSecond: number): SharedRate {
  return { bytesPerSecond, next: new BigInt64Array(new SharedArrayBuffer(8)) };
}

/** Microseconds on a clock that all threads share and nobody sets. */
function now(): bigint {
  return process.hrtime.bigint() / 1000n;
}

/** Bytes a second that threads may read together. Nothing is saved up: after a pause it goes on at the same rate. */
export class RateLimit {
  readonly #never = new Int32Array(new SharedArrayBuffer(4));

  constructor(private readonly shared: SharedRate) {}

  get bytesPerSecond(): number {
    return this.shared.bytesPerSecond;
  }

  /** Waits until `bytes` more may be read. False: `stopped` said so meanwhile. */
  pay(bytes: number, stopped: () => boolean): boolean {
    if (bytes === 0) return true;
    const { next, bytesPerSecond } = this.shared;
    const cost = BigInt(Math.ceil((bytes * 1e6) / bytesPerSecond));
    for (;;) {
      const free = Atomics.load(next, 0);
      const time = now();
      const wait = free - time;
      const begin = wait > 0n ? free : time;
      if (Atomics.compareExchange(next, 0, free, begin + cost) !== free) continue;
      return this.#sleepUntil(begin, stopped);
    }
  }

  #sleepUntil(time: bigint, stopped: () => boolean): boolean {
    for (;;) {
      if (stopped()) return false;
      const left = Number(time - now()) / 1000;
      if (left <= 0) return true;
      Atomics.wait(this.#never, 0, 0, Math.min(left, SLICE_MS));
    }
  }
}
