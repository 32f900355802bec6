import { ChunkmountError, type ErrorKind, messageOf } from '../errors.js';
import type { Reporter } from '../report/reporter.js';

/** What became of one VM of several. */
export type Outcome<T> =
  | { readonly name: string; readonly ok: true; readonly value: T }
  | { readonly name: string; readonly ok: false; readonly error: unknown };

/** Does `work` for each name, one after the other; one that fails does not keep the others from their turn. */
export async function forEachName<T>(
  names: readonly string[],
  signal: AbortSignal,
  work: (name: string) => Promise<T>,
): Promise<Outcome<T>[]> {
  const outcomes: Outcome<T>[] = [];
  for (const name of names) {
    if (signal.aborted) break;
    try {
      outcomes.push({ name, ok: true, value: await work(name) });
    } catch (error) {
      outcomes.push({ name, ok: false, error });
    }
  }
  return outcomes;
}

/** What `--json` shows of the names that failed. */
export function failuresOf(
  outcomes: readonly Outcome<unknown>[],
): { name: string; error: string; hint?: string }[] {
  return outcomes.flatMap((outcome) => {
    if (outcome.ok) return [];
    const hint = outcome.error instanceof ChunkmountError ? outcome.error.hint : undefined;
    return [{ name: outcome.name, error: messageOf(outcome.error), ...(hint === undefined ? {} : { hint }) }];
  });
}

/** Throws if any failed: with its own error if it was the only name, else with one that counts them (exit code 5 if some worked). */
export function throwFailures(outcomes: readonly Outcome<unknown>[], reporter: Reporter): void {
  const failures = outcomes.flatMap((outcome) => (outcome.ok ? [] : [outcome]));
  if (failures.length === 0) return;
  if (outcomes.length === 1) throw failures[0]!.error;
  for (const { name, error } of failures) {
    const hint = error instanceof ChunkmountError && error.hint !== undefined ? ` (${error.hint})` : '';
    reporter.warn(`${name}: ${messageOf(error)}${hint}`);
  }
  const names = failures.map(({ name }) => name).join(', ');
  const kind = failures.length < outcomes.length ? 'partial' : commonKind(failures.map(({ error }) => error));
  throw new ChunkmountError(kind, `${failures.length} of ${outcomes.length} failed: ${names}`, {
    hint: 'the warnings above say why',
  });
}

/** What all have in common: all were locked, all names were wrong; else they just failed. */
function commonKind(errors: readonly unknown[]): ErrorKind {
  const kinds = new Set(errors.map((error) => (error instanceof ChunkmountError ? error.kind : 'failed')));
  const [kind] = kinds;
  return kinds.size === 1 && kind !== undefined ? kind : 'failed';
}
