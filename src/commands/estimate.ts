import { Command } from 'commander';
import { type DiskEstimate, type Estimate, estimate } from '../backup/estimate.js';
import { DEFAULT_CHUNK_SIZE } from '../chunks/geometry.js';
import { formatBytes } from '../report/format.js';
import { addConnectOption, addStateOption, type DirectoryOptions, stateDirectory } from './backup-options.js';
import { type CommandContext, type CommandModule, printResult } from './context.js';
import { failuresOf, forEachName, throwFailures } from './each.js';
import { listOption } from './list-option.js';
import { parseChunkSize, parseList } from './parse.js';
import { addTrackingOptions, type TrackingOptions, trackingSettings } from './scan-options.js';
import { addSourceOptions, type SourceOptions, selectSources } from './sources.js';

export interface EstimateOptions extends SourceOptions, TrackingOptions, DirectoryOptions {
  chunkSize?: string;
}

const HELP = `
Tells, for each disk, how much the next session will read of it by itself, and how much of it the backup program will find
changed: a range where nothing knows what changed. Give the options that the backup gets. Nothing is frozen or read, and
nothing changed; the metadata of a thin pool is held while it is compared. For a VM that runs it is as of now, and changes until
the backup begins.

Exit status: 0; 1 failed; 2 usage; 5 some VMs failed.

Examples:
  chunkmount estimate --vm=mail01
  chunkmount estimate --image=disk.qcow2 --name=demo --json`;

function amount({ least, most }: DiskEstimate['send']): string {
  return least === most ? formatBytes(most) : `${formatBytes(least)} to ${formatBytes(most)}`;
}

function line(name: string, disk: DiskEstimate): string {
  const { target, size, read, send, sums, tracker, reason } = disk;
  const why = tracker === null ? `all data is read: ${reason}` : `tracker ${tracker} knows what changed`;
  return (
    `${name} ${target}: reads ${formatBytes(read)} of ${formatBytes(size)}, sends ${amount(send)} of chunks ` +
    `and ${formatBytes(sums)} of sums (${why})`
  );
}

/** Estimates the next backup of each source. */
export async function runEstimate(options: EstimateOptions, context: CommandContext): Promise<void> {
  const { reporter, signal } = context;
  const settings = {
    state: stateDirectory(options),
    connect: options.connect,
    exclude: options.exclude === undefined ? [] : parseList(options.exclude, '--exclude'),
    chunkSize: options.chunkSize === undefined ? DEFAULT_CHUNK_SIZE : parseChunkSize(options.chunkSize),
    tracking: trackingSettings(options),
  };
  const sources = new Map((await selectSources(options, signal)).map((source) => [source.name, source]));
  const outcomes = await forEachName([...sources.keys()], signal, (name) =>
    estimate({ source: sources.get(name)!, settings, reporter, signal }),
  );
  const estimates: Estimate[] = outcomes.flatMap((outcome) => (outcome.ok ? [outcome.value] : []));
  const lines = estimates.flatMap(({ name, disks }) => disks.map((disk) => line(name, disk)));
  printResult(context, { estimates, failed: failuresOf(outcomes) }, lines);
  throwFailures(outcomes, reporter);
}

export const estimateCommand: CommandModule = (context) =>
  addTrackingOptions(addConnectOption(addStateOption(addSourceOptions(new Command('estimate')))))
    .description('tell how much the next backup will read and send')
    .addOption(listOption('--exclude <disks>', 'disks to leave out, by target: vdb,hdb'))
    .option('--chunk-size <size>', 'power of two from 4K to 16M', `${DEFAULT_CHUNK_SIZE / 1024}K`)
    .addHelpText('after', HELP)
    .action(async (options: EstimateOptions) => runEstimate(options, context()));
