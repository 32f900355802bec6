#!/usr/bin/env node
import { constants } from 'node:os';
import { Command, CommanderError } from 'commander';
import { toolVersion } from './backup/version.js';
import { cleanupCommand } from './commands/cleanup.js';
import type { CommandContext } from './commands/context.js';
import { diffCommand } from './commands/diff.js';
import { doctorCommand } from './commands/doctor.js';
import { listCommand } from './commands/list.js';
import { mountCommand } from './commands/mount.js';
import { restoreCommand } from './commands/restore.js';
import { runCommand } from './commands/run.js';
import { translateSpellings } from './commands/spellings.js';
import { unlockCommand } from './commands/unlock.js';
import { verifyCommand } from './commands/verify.js';
import { ChunkmountError, EXIT_CODES, exitCodeOf, messageOf } from './errors.js';
import { TerminalReporter } from './report/terminal-reporter.js';
import { TextReporter } from './report/text-reporter.js';

const SIGNALS = ['SIGINT', 'SIGTERM', 'SIGHUP'] as const;

interface GlobalOptions {
  debug?: boolean;
  json?: boolean;
}

/** The signal that ended us, once one came. */
let received: (typeof SIGNALS)[number] | undefined;
let exitCode = 0;

/** The first signal asks to stop and undo; the second to leave even that. */
function catchSignals(first: AbortController, second: AbortController): void {
  for (const signal of SIGNALS) {
    process.on(signal, () => {
      (first.signal.aborted ? second : first).abort(new Error(`ended by ${signal}`));
      received ??= signal;
    });
  }
}

function createProgram(first: AbortController, second: AbortController): Command {
  const program = new Command('chunkmount');
  const context = (): CommandContext => {
    const { debug = false, json = false } = program.opts<GlobalOptions>();
    const { stdout, stderr } = process;
    const reporter = stderr.isTTY
      ? new TerminalReporter(stderr, { debug })
      : new TextReporter(stderr, { debug });
    return { reporter, stdout, json, signal: first.signal, insisted: second.signal };
  };
  program
    .description(
      'Shows the frozen disks of libvirt/KVM virtual machines as directories of chunk files, for rsync, BackupPC, restic, borg and rclone.',
    )
    .version(toolVersion())
    .option('--debug', 'say what is done and why')
    .option('--json', 'the result as one JSON object on stdout')
    .exitOverride()
    .configureOutput({ writeErr: (text) => process.stderr.write(text) });
  program.addCommand(mountCommand(context), { isDefault: true });
  program.addCommand(cleanupCommand(context));
  program.addCommand(runCommand(context, (code) => (exitCode = code)));
  program.addCommand(listCommand(context));
  program.addCommand(unlockCommand(context));
  program.addCommand(restoreCommand(context));
  program.addCommand(verifyCommand(context));
  program.addCommand(diffCommand(context));
  program.addCommand(doctorCommand(context));
  for (const command of program.commands) command.exitOverride();
  return program;
}

function printError(error: unknown): void {
  process.stderr.write(`chunkmount: error: ${messageOf(error)}\n`);
  if (error instanceof ChunkmountError && error.hint !== undefined) process.stderr.write(`  ${error.hint}\n`);
  if (process.argv.includes('--debug') && error instanceof Error) {
    const details = error instanceof ChunkmountError ? `${JSON.stringify(error.details)}\n` : '';
    process.stderr.write(`${details}${error.stack ?? ''}\n`);
  }
}

/** The exit code for what was thrown; commander has printed its own messages already. */
function handleError(error: unknown): number {
  if (error instanceof CommanderError) return error.exitCode === 0 ? 0 : EXIT_CODES.usage;
  printError(error);
  return exitCodeOf(error);
}

async function main(): Promise<number> {
  const first = new AbortController();
  const second = new AbortController();
  catchSignals(first, second);
  try {
    await createProgram(first, second).parseAsync(translateSpellings(process.argv.slice(2)), {
      from: 'user',
    });
  } catch (error) {
    exitCode = handleError(error);
  }
  return received === undefined ? exitCode : 128 + constants.signals[received];
}

process.exit(await main());
