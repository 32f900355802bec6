import type { Reporter } from '../report/reporter.js';
import type { JournalEntry } from '../session/journal.js';

export interface WatchRequest {
  /** The session's journal entries, once everything is frozen. */
  readonly entries: readonly JournalEntry[];
  readonly reporter: Reporter;
  /** Enlarge a thick LVM snapshot that is nearly full, while its group has space (`--snap-autoextend`). */
  readonly autoExtend: boolean;
  /** A snapshot's content is gone: what is read from now on is worth nothing. Called once for each. */
  readonly onLost: (message: string) => void;
  readonly intervalMs?: number | undefined;
  readonly signal: AbortSignal;
}

/** What was said already, so that it is said once. */
export class Once {
  readonly #said = new Set<string>();

  has(key: string): boolean {
    return this.#said.has(key);
  }

  do(key: string, action: () => void): void {
    if (this.#said.has(key)) return;
    this.#said.add(key);
    action();
  }
}
