import type { Command } from 'commander';
import type { Reporter } from '../report/reporter.js';

/** What a command gets from cli.ts. */
export interface CommandContext {
  readonly reporter: Reporter;
  /** For the result and nothing else. */
  readonly stdout: NodeJS.WritableStream;
  /** `--json`: the result is one JSON object. */
  readonly json: boolean;
  /** Aborted by the first SIGINT, SIGTERM or SIGHUP: stop, and undo what has been begun. */
  readonly signal: AbortSignal;
  /** Aborted by the second: stop undoing too, and leave the rest to a later cleanup. */
  readonly insisted: AbortSignal;
  /** Ends with this exit code although nothing failed: another program's. */
  readonly exitWith: (code: number) => void;
}

/** Makes the commander command of one verb. `context` is to be asked when the action runs: it knows the options then. */
export type CommandModule = (context: () => CommandContext) => Command;

/** Prints a command's result: the object with `--json`, else the lines. */
export function printResult(context: CommandContext, object: unknown, lines: readonly string[]): void {
  if (context.json) context.stdout.write(`${JSON.stringify(object, undefined, 2)}\n`);
  else for (const line of lines) context.stdout.write(`${line}\n`);
}
