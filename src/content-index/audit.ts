import {
  AUDIT_DONE,
  AUDIT_NEXT,
  AUDITING,
  announceChange,
  DISTRUSTED,
  GENERATION,
  MISMATCH,
  MISMATCH_LATE,
  type Rows,
  TRUST,
  TRUSTED,
  UNCHANGED,
  UNKNOWN,
  waitForChange,
} from './rows.js';

/** What a tracker's word is believed with. Plain data: all threads of a disk get the same. */
export interface KeepPlan {
  /** Chunks to be read again, in shared memory: if one of them changed, the tracker is wrong. */
  readonly samples: Uint32Array;
  /** Chunks that have the hash of zeros but are none. */
  readonly falseZeros: readonly number[];
}

/**
 * Nothing that a tracker says is shown to anybody before the samples have been compared with their rows. Threads share
 * that work: whoever needs a row that is said to be unchanged helps, and then waits for the others. See TRUST.
 */
export class Audit {
  constructor(
    private readonly rows: Rows,
    private readonly samples: Uint32Array,
    /** Whether a chunk is as its row says; undefined if that cannot be told. */
    private readonly isAsStored: (chunk: number) => boolean | undefined,
  ) {}

  /** Whether the tracker is believed; compares samples, and waits, until that is known. */
  passed(): boolean {
    const { control } = this.rows;
    for (;;) {
      const generation = Atomics.load(control, GENERATION);
      const trust = Atomics.load(control, TRUST);
      if (trust !== AUDITING) return trust === TRUSTED;
      if (!this.step()) waitForChange(control, generation);
    }
  }

  /** Chunk of the sample that is next, if there is one left to compare. */
  next(): number | undefined {
    const { control } = this.rows;
    if (Atomics.load(control, TRUST) !== AUDITING) return undefined;
    return this.samples[Atomics.load(control, AUDIT_NEXT)];
  }

  /** Compares one sample. False: none is left to be taken, but others may still be at theirs. */
  step(): boolean {
    const { control, states } = this.rows;
    if (Atomics.load(control, TRUST) !== AUDITING) return false;
    const taken = Atomics.add(control, AUDIT_NEXT, 1);
    const chunk = this.samples[taken];
    if (chunk === undefined) return false;
    const same = this.isAsStored(chunk);
    if (same === false) this.fail(chunk);
    // Whoever needs it finds out what is wrong with it.
    if (same === undefined) Atomics.compareExchange(states, chunk, UNCHANGED, UNKNOWN);
    if (Atomics.add(control, AUDIT_DONE, 1) + 1 === this.samples.length) {
      Atomics.compareExchange(control, TRUST, AUDITING, TRUSTED);
      announceChange(control);
    }
    return true;
  }

  /** The tracker was wrong about `chunk`: from now on every chunk is read. */
  fail(chunk: number): void {
    const { control } = this.rows;
    if (Atomics.exchange(control, TRUST, DISTRUSTED) === TRUSTED) Atomics.store(control, MISMATCH_LATE, 1);
    Atomics.compareExchange(control, MISMATCH, 0, chunk + 1);
    announceChange(control);
  }
}

/** Says which rows are unchanged: all but the chunks of `changed`. For a disk that no thread looks at yet. */
export function beginAudit(
  rows: Rows,
  samples: Uint32Array,
  changed: readonly { readonly first: number; readonly end: number }[],
): void {
  rows.states.fill(UNCHANGED);
  for (const { first, end } of changed) rows.states.fill(UNKNOWN, first, end);
  Atomics.store(rows.control, TRUST, samples.length === 0 ? TRUSTED : AUDITING);
}
