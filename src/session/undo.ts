import { failed, messageOf } from '../errors.js';
import type { Reporter } from '../report/reporter.js';
import type { Journal, JournalEntry } from './journal.js';

export interface UndoContext {
  readonly journal: Journal;
  readonly reporter: Reporter;
  readonly signal?: AbortSignal | undefined;
  /** How long a merge into a base may take (`--commit-timeout`); the handler's default if undefined. */
  readonly commitTimeoutMs?: number | undefined;
}

/**
 * Undoes one journal entry. Must be idempotent; must look at the host's real state first (the entry may have happened
 * wholly, partly or not at all, and others may have acted since); must remove only what the entry proves to be ours.
 * Returns when nothing of it is left; throws when something is, and is then called again by the next cleanup.
 */
export type UndoHandler = (entry: JournalEntry, context: UndoContext) => Promise<void>;

/** Journal kind → handler. */
export type UndoHandlers = Readonly<Record<string, UndoHandler>>;

/**
 * Undoes all pending entries, newest first. One that fails does not keep the older ones from being tried, except those
 * that the failed handler's kind guards (`barriers`): nothing below a barrier is undone while it stands.
 * Entries that `spare` holds for are left alone. Returns the errors, in order; empty when everything else is undone.
 */
export async function undoAll(
  context: UndoContext,
  handlers: UndoHandlers,
  barriers: ReadonlySet<string>,
  spare: (entry: JournalEntry) => boolean = () => false,
): Promise<Error[]> {
  const errors: Error[] = [];
  for (const entry of context.journal.pending()) {
    if (spare(entry)) continue;
    const handler = Object.hasOwn(handlers, entry.kind) ? handlers[entry.kind] : undefined;
    try {
      if (handler === undefined) throw failed(`the journal holds a step of unknown kind "${entry.kind}"`);
      await handler(entry, context);
      context.journal.undone(entry);
    } catch (error) {
      context.reporter.debug(`undoing ${entry.kind} (step ${entry.seq}) failed: ${messageOf(error)}`);
      errors.push(error instanceof Error ? error : new Error(String(error)));
      if (barriers.has(entry.kind)) break;
    }
  }
  return errors;
}
