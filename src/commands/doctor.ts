import * as path from 'node:path';
import { Command } from 'commander';
import type { CheckResult } from '../backup/check-result.js';
import { checkHost } from '../backup/host-checks.js';
import { failed } from '../errors.js';
import { formatBytes } from '../report/format.js';
import {
  addConnectOption,
  addDirectoryOptions,
  backupDirectory,
  type DirectoryOptions,
  stateDirectory,
} from './backup-options.js';
import { type CommandContext, type CommandModule, printResult } from './context.js';
import { listOption } from './list-option.js';
import { parseList } from './parse.js';
import { placeOption } from './place-option.js';

export interface DoctorOptions extends DirectoryOptions {
  connect?: string;
  vm?: string;
  overlayDir?: string;
}

const HELP = `
Looks at programs, devices and directories, at sessions that went wrong and locks that were kept, at libvirt, and for each VM
at its name and its disks, as a backup without --exclude and --snapshot would, at the room for its overlays, at what confines
its QEMU, and asks its guest agent for a sign of life. Changes nothing. A line each, and where something is not as it should
be what that is needed for and a command that mends it:
  ok       all is well
  poor     it works without, with a drawback
  missing  what needs it does not work

Exit status: 0 nothing is missing; 1 something is.

Examples:
  chunkmount doctor
  chunkmount doctor --vm=mail01 --overlay-dir=/srv/overlays     would overlays work there?
  chunkmount doctor --json`;

const MARKS = { ok: 'ok     ', poor: 'poor   ', missing: 'missing' } as const;

function describe({ name, state, detail, need, fix, free }: CheckResult): string[] {
  const space = free === undefined ? '' : `, ${formatBytes(free)} free`;
  const lines = [`${MARKS[state]} ${name}: ${detail}${space}`];
  if (need !== undefined) lines.push(`        needed for: ${need}`);
  if (fix !== undefined) lines.push(`        to mend it: ${fix}`);
  return lines;
}

/** Says what this host can do, and how to get what is missing. */
export async function runDoctor(options: DoctorOptions, context: CommandContext): Promise<void> {
  const checks = await checkHost({
    stateDirectory: stateDirectory(options).root,
    backupDirectory: backupDirectory(options),
    connect: options.connect,
    vms: options.vm === undefined || options.vm === 'all' ? undefined : parseList(options.vm, '--vm'),
    overlayDirectory: options.overlayDir === undefined ? undefined : path.resolve(options.overlayDir),
  });
  printResult(context, { checks }, checks.flatMap(describe));
  const missing = checks.filter(({ state }) => state === 'missing');
  if (missing.length > 0) {
    throw failed(`missing: ${missing.map(({ name }) => name).join(', ')}`, {
      hint: 'what does not need them works all the same',
    });
  }
}

export const doctorCommand: CommandModule = (context) =>
  addConnectOption(addDirectoryOptions(new Command('doctor')))
    .description('what this host can do, and how to get what is missing')
    .addOption(listOption('--vm <names>', 'look at these VMs alone: mail01,devsrv'))
    .addOption(placeOption('--overlay-dir <dir>', 'where overlays would go (beside each image)'))
    .addHelpText('after', HELP)
    .action(async (options: DoctorOptions) => runDoctor(options, context()));
