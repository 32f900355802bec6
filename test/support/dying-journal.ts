import { Journal, type JournalData, type JournalEntry } from '../../src/session/journal.js';

/** As SIGKILL would: nothing runs after the nth record, nor before it was written if `before`. */
export class DyingJournal extends Journal {
  #left: number;

  constructor(
    file: string,
    records: number,
    readonly before = false,
  ) {
    super(file);
    this.#left = records;
  }

  get died(): boolean {
    return this.#left <= 0;
  }

  #step<T>(record: () => T): T {
    this.#left--;
    if (this.#left < 0 || (this.before && this.#left === 0)) throw new Error('killed');
    const result = record();
    if (this.#left === 0) throw new Error('killed');
    return result;
  }

  override intend(kind: string, data: JournalData): JournalEntry {
    return this.#step(() => super.intend(kind, data));
  }

  override done(entry: JournalEntry, data?: JournalData): JournalEntry {
    return this.#step(() => super.done(entry, data));
  }

  override undone(entry: JournalEntry): void {
    this.#step(() => super.undone(entry));
  }
}
