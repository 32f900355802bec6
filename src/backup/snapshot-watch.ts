import * as path from 'node:path';
import { messageOf } from '../errors.js';
import { type Reporter, silentReporter } from '../report/reporter.js';
import { readPending } from '../session/journal.js';
import { WATCHED_KINDS } from '../snapshot/watched-kinds.js';
import type { DaemonStatus } from './status.js';

/** What is kept of each kind: a session can last for days. */
const MAX_SENTENCES = 20;

/** Looks after the snapshots of a session while its tree is served. Nobody reads what a daemon says, so it is kept for the status. */
export class SnapshotWatch {
  readonly #warnings: string[] = [];
  readonly #lost: string[] = [];
  readonly #end = new AbortController();

  constructor(
    sessionDirectory: string,
    private readonly autoExtend: boolean,
    /** Called when the content of a snapshot is gone. */
    private readonly whenLost: () => void,
  ) {
    this.#watch(path.join(sessionDirectory, 'journal.jsonl')).catch((error: unknown) =>
      this.#keep(this.#warnings, `the snapshots are not looked after: ${messageOf(error)}`),
    );
  }

  get findings(): Pick<DaemonStatus, 'warnings' | 'lost'> {
    return {
      ...(this.#warnings.length === 0 ? {} : { warnings: this.#warnings }),
      ...(this.#lost.length === 0 ? {} : { lost: this.#lost }),
    };
  }

  end(): void {
    this.#end.abort();
  }

  async #watch(journal: string): Promise<void> {
    const entries = readPending(journal).filter(({ kind }) => WATCHED_KINDS.has(kind));
    if (entries.length === 0) return;
    const { watchSnapshots } = await import('../snapshot/watch-snapshots.js');
    const keep = (message: string) => this.#keep(this.#warnings, message);
    const reporter: Reporter = { ...silentReporter, warn: keep, notice: keep };
    const onLost = (message: string) => {
      this.#keep(this.#lost, message);
      this.whenLost();
    };
    await watchSnapshots({
      entries,
      reporter,
      autoExtend: this.autoExtend,
      onLost,
      signal: this.#end.signal,
    });
  }

  #keep(sentences: string[], message: string): void {
    if (sentences.length < MAX_SENTENCES) sentences.push(message);
  }
}
