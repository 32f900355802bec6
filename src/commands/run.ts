import { constants } from 'node:os';
import { Command } from 'commander';
import { type BegunSession, beginSession } from '../backup/begin-session.js';
import { endOwnSession } from '../backup/end-own-session.js';
import type { BackupSettings } from '../backup/settings.js';
import { failed, messageOf, usage } from '../errors.js';
import { runForeground } from '../host/exec.js';
import { addBackupOptions, type BackupOptions, backupSettings } from './backup-options.js';
import type { CommandContext, CommandModule } from './context.js';
import { forEachName, throwFailures } from './each.js';
import { addScanOptions, SCAN_HELP } from './scan-options.js';
import { addSourceOptions, type SourceOptions, selectSources } from './sources.js';
import { addTreeOptions } from './tree-options.js';

export interface RunCommandOptions extends BackupOptions, SourceOptions {}

const HELP = `
The command sees the first tree as $CHUNKMOUNT_TREE and all of them, joined by ':', as $CHUNKMOUNT_TREES. Whatever it does,
the trees are unmounted and the snapshots undone when it ends. Its output is its own.

A terminal that is closed ends both of them, with nohup, too, since Node.js does not keep to what that says. What has to outlast
the terminal is begun with setsid, or in a unit of systemd.
${SCAN_HELP}

Exit status: the command's own, 128+n if signal n ended it; if it is 0, that of the cleanup. If a tree could not be
mounted, the command is not run, and it is that of mount.

Examples:
  chunkmount run --vm=mail01 -- sh -c 'rsync -a --delete "$CHUNKMOUNT_TREE/" backup:/srv/mail01/'
  chunkmount run --vm=mail01 -- restic backup /var/lib/libvirt/backup/mail01`;

async function beginAll(
  options: RunCommandOptions,
  settings: BackupSettings,
  context: CommandContext,
  begun: BegunSession[],
): Promise<void> {
  const { reporter, signal, insisted } = context;
  for (const source of await selectSources(options, signal)) {
    signal.throwIfAborted();
    begun.push(await beginSession({ source, settings, command: 'run', reporter, signal, insisted }));
  }
}

/** Mounts, runs the command, cleans up. Returns the exit code. */
export async function runRun(
  command: readonly string[],
  options: RunCommandOptions,
  context: CommandContext,
): Promise<number> {
  const [program, ...args] = command;
  if (program === undefined)
    throw usage('there is no command to run', {
      hint: 'give it after --: chunkmount run --vm=NAME -- COMMAND',
    });
  const settings = backupSettings(options);
  const begun: BegunSession[] = [];
  let exitCode: number;
  try {
    await beginAll(options, settings, context, begun);
    const trees = begun.map(({ mountpoint }) => mountpoint);
    exitCode = await runIn(trees, program, args, context);
  } catch (error) {
    await endAll(begun, settings, context, false);
    throw error;
  }
  await endAll(begun, settings, context, exitCode === 0);
  return exitCode;
}

/** Runs the command. Returns its exit code, 128 + n if signal n ended it. */
async function runIn(
  trees: readonly string[],
  program: string,
  args: readonly string[],
  { signal, insisted }: CommandContext,
): Promise<number> {
  const env = { CHUNKMOUNT_TREE: trees[0]!, CHUNKMOUNT_TREES: trees.join(':') };
  try {
    const result = await runForeground(program, args, { env, signal, kill: insisted });
    return result.exitCode ?? 128 + (result.signal === undefined ? 0 : constants.signals[result.signal]);
  } catch (error) {
    throw failed(`the command ${program} cannot be run`, {
      hint: 'is it spelt right, is it on PATH, and may it be executed, and the current directory entered?',
      cause: error,
    });
  }
}

/** Ends all sessions. Throws what went wrong with that only if all before `wentWell`. */
async function endAll(
  begun: readonly BegunSession[],
  { state, keepLock, commitTimeoutMs }: BackupSettings,
  { reporter, insisted }: CommandContext,
  wentWell: boolean,
): Promise<void> {
  const byName = new Map(begun.map((session) => [session.name, session]));
  const outcomes = await forEachName([...byName.keys()], insisted, async (name) => {
    const request = { name, state, command: 'run', keepLock, reporter, signal: insisted, commitTimeoutMs };
    if ((await endOwnSession(byName.get(name)!, request)) === 'ended') return;
    throw failed(`the tree of ${name} was taken away by another command`, {
      hint: 'the backup made of it may not be whole: run this again when nobody else backs that up',
    });
  });
  try {
    throwFailures(outcomes, reporter);
  } catch (error) {
    if (wentWell) throw error;
    reporter.warn(messageOf(error));
  }
}

export const runCommand: CommandModule = (context) =>
  addTreeOptions(addScanOptions(addBackupOptions(addSourceOptions(new Command('run')))))
    .description('mount, run a command, and clean up whatever it does')
    .argument('<command...>', 'what to run, and its arguments: after --')
    .usage('[options] -- COMMAND [ARG…]')
    .addHelpText('after', HELP)
    .action(async (command: string[], options: RunCommandOptions) => {
      const given = context();
      given.exitWith(await runRun(command, options, given));
    });
