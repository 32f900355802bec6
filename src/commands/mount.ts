import { Command } from 'commander';
import { type BegunSession, beginSession } from '../backup/begin-session.js';
import { endOwnSession } from '../backup/end-own-session.js';
import { waitForUnmount } from '../backup/wait-for-unmount.js';
import { messageOf, usage } from '../errors.js';
import { notifyReady } from '../host/service-manager.js';
import type { Reporter } from '../report/reporter.js';
import { addBackupOptions, type BackupOptions, backupSettings } from './backup-options.js';
import { type CommandContext, type CommandModule, printResult } from './context.js';
import { failuresOf, forEachName, throwFailures } from './each.js';
import { warnOfOwnMounts } from './own-mounts.js';
import { addScanOptions, SCAN_HELP } from './scan-options.js';
import { addSourceOptions, type SourceOptions, selectSources } from './sources.js';
import { addTreeOptions } from './tree-options.js';

export interface MountOptions extends BackupOptions, SourceOptions {
  foreground?: boolean;
}

const HELP = `
Prints the mountpoint of each tree, a line each, and leaves a daemon that serves it.
${SCAN_HELP}

Exit status: 0 mounted; 1 failed, and nothing is left behind; 2 usage; 3 locked, mounted already or
too many backups; 5 some VMs are mounted, some failed.

Examples:
  chunkmount --vm=mail01
  rsync -a --delete /var/lib/libvirt/backup/mail01/ backup:/srv/mail01/
  chunkmount cleanup --vm=mail01

  chunkmount --image=disk.qcow2 --name=demo --backupdir=/mnt --statedir=/var/lib/demo
  chunkmount --vm=mail01,devsrv --exclude=vdb --quiesce=require
  chunkmount --vm=mail01 --foreground                  until Ctrl-C; in a unit of systemd with Type=notify`;

/** Mounts the trees of VMs or images. Sessions stay until `cleanup`, or with --foreground until a signal or unmount. */
export async function runMount(options: MountOptions, context: CommandContext): Promise<void> {
  const settings = backupSettings(options);
  const { reporter, signal, insisted } = context;
  const sources = await selectSources(options, signal);
  const byName = new Map(sources.map((source) => [source.name, source]));
  const outcomes = await forEachName([...byName.keys()], signal, (name) =>
    beginSession({ source: byName.get(name)!, settings, command: 'mount', reporter, signal, insisted }),
  );
  const begun = outcomes.flatMap((outcome) => (outcome.ok ? [outcome.value] : []));
  // Whoever ends us does not want the trees that were begun before, either.
  const mounted = signal.aborted ? [] : begun;
  const mountpoints = mounted.map(({ mountpoint }) => mountpoint);
  // An `rsync --delete` from where nothing is mounted would erase a backup.
  warnOfOwnMounts(mountpoints, 'a backup program is safe within chunkmount run', reporter);
  printResult(context, { mounted, failed: failuresOf(outcomes) }, mountpoints);
  if (options.foreground === true || signal.aborted) await stay(begun, options, context);
  throwFailures(outcomes, reporter);
}

/** Until we are told to end, or somebody unmounts the trees; then cleans up. */
async function stay(
  mounted: readonly BegunSession[],
  options: MountOptions,
  context: CommandContext,
): Promise<void> {
  const { state, keepLock, commitTimeoutMs } = backupSettings(options);
  const { reporter, signal, insisted } = context;
  await tellReady(mounted, reporter);
  await Promise.all(mounted.map((session) => waitForUnmount(session, signal)));
  const byName = new Map(mounted.map((session) => [session.name, session]));
  const outcomes = await forEachName([...byName.keys()], insisted, (name) => {
    const request = { name, state, command: 'mount', keepLock, reporter, signal: insisted, commitTimeoutMs };
    return endOwnSession(byName.get(name)!, request);
  });
  throwFailures(outcomes, reporter);
}

/** A service manager that is not told ends us after a while, and the trees then go as with any other signal. */
async function tellReady(mounted: readonly BegunSession[], reporter: Reporter): Promise<void> {
  if (mounted.length === 0) return;
  try {
    await notifyReady(mounted.map(({ mountpoint }) => mountpoint).join(' '));
  } catch (error) {
    reporter.warn(`the service manager could not be told: ${messageOf(error)}`);
  }
}

export const mountCommand: CommandModule = (context) =>
  addTreeOptions(addScanOptions(addBackupOptions(addSourceOptions(new Command('mount')))))
    .description('freeze disks and mount them as a tree of chunks (the default command)')
    .option('--foreground', 'stay until a signal or an unmount, then clean up')
    // The default command gets what is no command's name.
    .allowExcessArguments()
    .addHelpText('after', HELP)
    .action(async (options: MountOptions, command: Command) => {
      const [word] = command.args;
      if (word !== undefined)
        throw usage(`${JSON.stringify(word)} is neither a command nor an option`, {
          hint: 'see chunkmount --help; a VM is given as --vm=NAME',
        });
      await runMount(options, context());
    });
