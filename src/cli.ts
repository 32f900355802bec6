#!/usr/bin/env node
import { setMaxListeners } from 'node:events';
import { closeSync, fstatSync } from 'node:fs';
import { constants } from 'node:os';
import { setImmediate } from 'node:timers/promises';
import { isatty } from 'node:tty';
import { type Command, CommanderError } from 'commander';
import type { CommandContext } from './commands/context.js';
import { addVerbs, createProgram } from './commands/program.js';
import { translateSpellings } from './commands/spellings.js';
import { loadVerbs } from './commands/verbs.js';
import { ChunkmountError, EXIT_CODES, exitCodeOf, messageOf, systemCode, systemHint } from './errors.js';
import type { Reporter } from './report/reporter.js';
import { TextReporter } from './report/text-reporter.js';

const SIGNALS = ['SIGINT', 'SIGTERM', 'SIGHUP'] as const;

interface GlobalOptions {
  debug?: boolean;
  json?: boolean;
}

/** The signal that ended us, once one came. */
let received: (typeof SIGNALS)[number] | undefined;
let exitCode = 0;
/** Why the result could not be written, once that failed. */
let outputError: Error | undefined;

/** The first signal asks to stop and undo; the second to leave even that. */
function catchSignals(first: AbortController, second: AbortController): void {
  for (const signal of SIGNALS) {
    process.on(signal, () => {
      const again = first.signal.aborted;
      process.stderr.write(
        again
          ? `chunkmount: ${signal} again: leaving the rest to chunkmount cleanup\n`
          : `chunkmount: ${signal}: stopping and cleaning up; a second signal leaves that to chunkmount cleanup\n`,
      );
      received ??= signal;
      (again ? second : first).abort(new Error(`ended by ${signal}`));
    });
  }
}

/** A terminal or pipe that is gone must not keep us from giving a VM its disks back. */
function surviveClosedOutput(): void {
  process.stderr.on('error', () => {});
  process.stdout.on('error', (error) => {
    // Whoever closes a pipe has read enough.
    if (systemCode(error) !== 'EPIPE') outputError ??= error;
  });
}

/** Tells that the result could not be written, unless that is what the command failed with. */
function tellOutputError(thrown: unknown): void {
  if (outputError === undefined || (thrown instanceof Error && thrown.cause === outputError)) return;
  process.stderr.write(`chunkmount: error: the result cannot be written: ${messageOf(outputError)}\n`);
  exitCode ||= EXIT_CODES.failed;
}

type MakeReporter = (options: { readonly debug: boolean }) => Reporter;

/** Progress bars are loaded where somebody sees them only: a cron job begins sooner without. */
async function loadReporter(): Promise<MakeReporter> {
  const { stderr } = process;
  if (!stderr.isTTY) return (options) => new TextReporter(stderr, options);
  const { TerminalReporter } = await import('./report/terminal-reporter.js');
  return (options) => new TerminalReporter(stderr, options);
}

/** Makes what a verb gets when it runs. */
function contextOf(
  program: Command,
  makeReporter: MakeReporter,
  signals: Pick<CommandContext, 'signal' | 'insisted'>,
): CommandContext {
  const { debug = false, json = false } = program.opts<GlobalOptions>();
  const exitWith = (code: number) => {
    exitCode = code;
  };
  return { reporter: makeReporter({ debug }), stdout: process.stdout, json, ...signals, exitWith };
}

/** A path was given from a directory that has been removed or unmounted meanwhile. */
function isOfWorkingDirectory(error: unknown): boolean {
  return error instanceof Error && 'syscall' in error && error.syscall === 'uv_cwd';
}

function hintFor(error: unknown): string | undefined {
  if (error instanceof ChunkmountError && error.hint !== undefined) return error.hint;
  // What a signal interrupts fails in ways that say nothing.
  if (received !== undefined) return undefined;
  const hint = systemHint(error);
  if (hint !== undefined) return hint;
  if (error instanceof ChunkmountError) return 'run it again with --debug to see what was done';
  if (isOfWorkingDirectory(error)) return 'the current directory is gone: change to one that is there';
  return 'this should not happen: run it again with --debug, and report it';
}

function printError(error: unknown, debug: boolean): void {
  const hint = hintFor(error);
  process.stderr.write(`chunkmount: error: ${messageOf(error)}\n`);
  if (hint !== undefined) process.stderr.write(`  ${hint}\n`);
  if (debug && error instanceof Error) {
    const details = error instanceof ChunkmountError ? `${JSON.stringify(error.details)}\n` : '';
    process.stderr.write(`${details}${error.stack ?? ''}\n`);
  }
}

/** The exit code for what was thrown; commander has printed its own messages already. */
function handleError(error: unknown, debug: boolean): number {
  if (error instanceof CommanderError) return error.exitCode === 0 ? 0 : EXIT_CODES.usage;
  printError(error, debug);
  return exitCodeOf(error);
}

/** Where LVM, file systems and partitions have their programs. cron's PATH lacks them. */
const SYSTEM_DIRECTORIES = ['/usr/local/sbin', '/usr/sbin', '/sbin'];

/** Lets us, and the daemons that we start, find those programs behind all others. */
function findSystemPrograms(): void {
  // An empty one, too: it would mean the current directory, where anybody may have put anything.
  const found = process.env.PATH || '/usr/local/bin:/usr/bin:/bin';
  const given = found.split(':');
  process.env.PATH = [found, ...SYSTEM_DIRECTORIES.filter((one) => !given.includes(one))].join(':');
}

async function main(): Promise<number> {
  const first = new AbortController();
  const second = new AbortController();
  // A listener for each program that runs: of a VM with many disks more than the ten that Node.js warns from.
  setMaxListeners(0, first.signal, second.signal);
  catchSignals(first, second);
  surviveClosedOutput();
  findSystemPrograms();
  const program = createProgram();
  let thrown: unknown;
  try {
    const args = translateSpellings(process.argv.slice(2));
    const makeReporter = await loadReporter();
    const signals = { signal: first.signal, insisted: second.signal };
    addVerbs(program, await loadVerbs(args), () => contextOf(program, makeReporter, signals));
    await program.parseAsync(args, { from: 'user' });
  } catch (error) {
    thrown = error;
    exitCode = handleError(error, program.opts<GlobalOptions>().debug === true);
  }
  // What could not be written is told in the next turn.
  await setImmediate();
  tellOutputError(thrown);
  return received === undefined ? exitCode : 128 + constants.signals[received];
}

/** When it ends, Node.js sets back the modes of the terminals that it began on, and crashes if one is gone: the exit code would be lost. */
function leaveGoneTerminals(): void {
  for (const fd of [0, 1, 2]) {
    try {
      if (fstatSync(fd).isCharacterDevice() && !isatty(fd)) closeSync(fd);
    } catch {
      // It is closed.
    }
  }
}

const code = await main();
leaveGoneTerminals();
process.exit(code);
