import { Command } from 'commander';
import { type EndResult, endSession } from '../backup/end-session.js';
import { treesOf } from '../backup/mountpoint.js';
import { endChainSession } from '../chain/chain-session.js';
import { checkName } from '../chunks/names.js';
import { failed, usage } from '../errors.js';
import type { Reporter } from '../report/reporter.js';
import type { StateDirectory } from '../session/state-directory.js';
import {
  addDirectoryOptions,
  COMMIT_TIMEOUT_OPTION,
  commitTimeoutMs,
  type DirectoryOptions,
  stateDirectory,
} from './backup-options.js';
import { type CommandContext, type CommandModule, printResult } from './context.js';
import { failuresOf, forEachName, throwFailures } from './each.js';
import { listOption } from './list-option.js';
import { addModes, type Mode } from './modes.js';
import { parseList } from './parse.js';

export interface CleanupOptions extends DirectoryOptions {
  vm?: string;
  name?: string;
  all?: boolean;
  keepLock?: boolean;
  kept?: boolean;
  commitTimeout?: string;
}

const HELP = `
Unmounts the tree, and gives the VM its disks back as they were: commits overlays, removes snapshots. Can be run at any
time, also after a crash or a reboot, and twice. What cannot be undone stays recorded, and is tried again the next time.
With --json it tells what was read of each tree; --debug says it in words.

Exit status: 0 nothing is left; 1 something is left, or the backup is not whole (chunks could not be read, the
daemon died); 3 another command works on the VM; 5 some VMs are cleaned up, some not.

Examples:
  chunkmount cleanup --vm=mail01
  chunkmount cleanup --all
  chunkmount cleanup --kept --vm=mail01`;

const NOT_BOTH = 'leave out that, or --all';

const MODES: readonly Mode[] = [
  {
    name: 'cleanup --all',
    when: ({ all }) => all === true,
    takes: ['--all', '--vm=all', '--kept', '--keep-lock', '--commit-timeout'],
    instead: { '--vm': NOT_BOTH, '--name': NOT_BOTH },
  },
];

/** The names that --vm or --name give. */
export function givenNames(options: { vm?: string; name?: string }): string[] {
  const names = [
    ...(options.vm === undefined ? [] : parseList(options.vm, '--vm')),
    ...(options.name === undefined ? [] : parseList(options.name, '--name')),
  ];
  return [...new Set(names.map(checkName))];
}

/** Of all that have something to be ended. */
function allNames(state: StateDirectory, kept: boolean): string[] {
  return [...new Set([...state.sessions(), ...(kept ? state.kept() : [])])].sort();
}

/** Throws if there is a session, and only its state directory was not given. */
function tellNothing(name: string, reporter: Reporter): void {
  const [mountpoint] = treesOf(name);
  if (mountpoint === undefined) {
    reporter.notice(`${name} has no session: there is nothing to clean up`);
    return;
  }
  throw failed(`${name} has no session in this state directory, but its tree is mounted at ${mountpoint}`, {
    hint: 'give the --statedir, or CHUNKMOUNT_STATEDIR, that it was begun with',
  });
}

/** Ends sessions. */
export async function runCleanup(options: CleanupOptions, context: CommandContext): Promise<void> {
  const { reporter, signal } = context;
  const state = stateDirectory(options);
  const all = options.all === true || options.vm === 'all';
  const names = all ? allNames(state, options.kept === true) : givenNames(options);
  if (names.length === 0 && !all)
    throw usage('nothing to clean up was named', { hint: 'give --vm=NAME, --name=NAME or --all' });
  const shared = { state, keepLock: options.keepLock === true, commitTimeoutMs: commitTimeoutMs(options) };
  const outcomes = await forEachName(names, signal, async (name): Promise<EndResult> => {
    const dropKept = options.kept === true;
    const request = { name, command: 'cleanup', ...shared, dropKept, reporter, signal };
    if (await endChainSession({ ...request, insisted: signal }))
      return { kind: 'ended', counters: undefined };
    const result = await endSession(request);
    if (result.kind === 'nothing') tellNothing(name, reporter);
    return result;
  });
  const ended = outcomes.flatMap((outcome) =>
    outcome.ok && outcome.value.kind === 'ended' ? [{ name: outcome.name, ...outcome.value }] : [],
  );
  const result = {
    ended: ended.map(({ name }) => name),
    counters: Object.fromEntries(ended.map(({ name, counters }) => [name, counters])),
    failed: failuresOf(outcomes),
  };
  printResult(context, result, []);
  throwFailures(outcomes, reporter);
}

export const cleanupCommand: CommandModule = (context) =>
  addModes(addDirectoryOptions(new Command('cleanup')), MODES)
    .description('unmount trees and undo their snapshots')
    .addOption(listOption('--vm <names>', 'VMs: mail01,devsrv or all'))
    .addOption(listOption('--name <names>', 'trees of images'))
    .option('--all', 'every session there is')
    .option('--kept', 'also end what was left for the next session: overlays, snapshots, checkpoints')
    .option('--keep-lock', 'keep the VM locked, until chunkmount unlock')
    .option(...COMMIT_TIMEOUT_OPTION)
    .addHelpText('after', HELP)
    .action(async (options: CleanupOptions) => runCleanup(options, context()));
