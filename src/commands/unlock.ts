import { Command } from 'commander';
import { usage } from '../errors.js';
import { Lock } from '../session/lock.js';
import { addDirectoryOptions, type DirectoryOptions, stateDirectory } from './backup-options.js';
import { givenNames } from './cleanup.js';
import { type CommandContext, type CommandModule, printResult } from './context.js';
import { failuresOf, forEachName, throwFailures } from './each.js';
import { listOption } from './list-option.js';

export interface UnlockOptions extends DirectoryOptions {
  vm?: string;
  name?: string;
}

const HELP = `
Releases a lock that --keep-lock left. A session that is there stays: that is for chunkmount cleanup.

Exit status: 0 the VM is not locked (any more); 3 a command works on it right now.

Example:
  chunkmount unlock --vm=mail01`;

export async function runUnlock(options: UnlockOptions, context: CommandContext): Promise<void> {
  const { reporter, signal } = context;
  const { locks } = stateDirectory(options);
  const names = givenNames(options);
  if (names.length === 0)
    throw usage('nothing to unlock was named', { hint: 'give --vm=NAME or --name=NAME' });
  const outcomes = await forEachName(names, signal, async (name) => {
    const lock = await Lock.acquire(locks, name, { command: 'unlock', evenIfKept: true });
    const kept = lock.releaseKept();
    if (!kept) reporter.notice(`${name} was not locked`);
    return kept;
  });
  const unlocked = outcomes.flatMap((outcome) => (outcome.ok && outcome.value ? [outcome.name] : []));
  printResult(context, { unlocked, failed: failuresOf(outcomes) }, []);
  throwFailures(outcomes, reporter);
}

export const unlockCommand: CommandModule = (context) =>
  addDirectoryOptions(new Command('unlock'))
    .description('release a lock that --keep-lock left')
    .addOption(listOption('--vm <names>', 'VMs: mail01,devsrv'))
    .addOption(listOption('--name <names>', 'trees of images'))
    .addHelpText('after', HELP)
    .action(async (options: UnlockOptions) => runUnlock(options, context()));
