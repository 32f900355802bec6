import { Command } from 'commander';
import { type CheckResult, checkHost } from '../backup/host-checks.js';
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

export interface DoctorOptions extends DirectoryOptions {
  connect?: string;
}

const HELP = `
Exit status: 0 nothing is missing; 1 something is.`;

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
    .addHelpText('after', HELP)
    .action(async (options: DoctorOptions) => runDoctor(options, context()));
