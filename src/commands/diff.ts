import * as path from 'node:path';
import { Command } from 'commander';
import { failed, messageOf } from '../errors.js';
import { replaceFile } from '../host/durable.js';
import { formatBytes } from '../report/format.js';
import { type ChangedRange, type DiskDiff, diffTrees, type TreeDiff } from '../restore/diff.js';
import { diskMap, textMap } from '../restore/disk-map.js';
import { MAX_SVG_CELLS, type SvgDisk, svgMap } from '../restore/svg-map.js';
import { Tree } from '../restore/tree.js';
import { type CommandContext, type CommandModule, printResult } from './context.js';
import { countOf } from './count-of.js';
import { disksOption } from './list-option.js';
import { placeArgument } from './place-option.js';

export interface DiffOptions {
  readonly before: string;
  readonly after: string;
  /** Targets; all disks of both trees if undefined. */
  readonly disks?: readonly string[] | undefined;
  /** Where to write a picture. */
  readonly svg?: string | undefined;
  /** Print a map of block characters; on a terminal if undefined. */
  readonly map?: boolean | undefined;
  /** Print all ranges, not only the first. */
  readonly all: boolean;
}

/** The options as commander has them. */
interface DiffFlags extends Omit<DiffOptions, 'before' | 'after' | 'disks'> {
  readonly disk?: readonly string[];
}

/** A person reads no more; `--all` and `--json` give the rest. */
const MAX_RANGES = 20;
const MAP_COLUMNS = 64;
const MAP_ROWS = 16;

const HELP = `
Tells what changed from one backup to another, by their sums: no chunk is read. On a terminal it shows each disk as a map:
· unchanged, ░ ▒ ▓ █ up to a quarter, half, three quarters, all of the chunks that a character stands for changed.

Exit status: 0 compared, whatever came of it; 1 failed; 2 wrong usage; 4 a manifest or sums file is missing or damaged.

Examples:
  chunkmount diff /backup/monday/mail01 /backup/tuesday/mail01
  chunkmount diff /backup/monday/mail01 /backup/tuesday/mail01 --svg=changes.svg`;

export const diffCommand: CommandModule = (context) =>
  new Command('diff')
    .summary('what changed between two trees')
    .description('Tells what changed between two trees.')
    .addArgument(placeArgument('<tree1>', 'the older tree'))
    .addArgument(placeArgument('<tree2>', 'the newer tree'))
    .addOption(disksOption())
    .option('--all', `list all ranges, not the first ${MAX_RANGES} of each disk`, false)
    .option('--svg <file>', 'write a picture of the disks, changed chunks coloured')
    .option('--map', 'show the map even if the output is no terminal')
    .option('--no-map', 'do not show the map')
    .addHelpText('after', HELP)
    .action(async (before: string, after: string, flags: DiffFlags) => {
      const { disk: disks, ...others } = flags;
      await runDiff({ before, after, disks, ...others }, context());
    });

/** Prints what changed; see `diffTrees` for what it throws. */
export async function runDiff(options: DiffOptions, context: CommandContext): Promise<void> {
  const diff = compare(options);
  if (options.svg !== undefined) writePicture(options.svg, diff);
  const { stdout } = context;
  const onTerminal = 'isTTY' in stdout && stdout.isTTY === true;
  const lines = diff.disks.flatMap((disk) => diskLines(disk, options.all, options.map ?? onTerminal));
  printResult(context, diff, [heading(diff), ...lines]);
}

function compare({ before, after, disks }: DiffOptions): TreeDiff {
  const first = Tree.open(before);
  try {
    const second = Tree.open(after);
    try {
      return diffTrees(first, second, disks);
    } finally {
      second.close();
    }
  } finally {
    first.close();
  }
}

function heading({ old, new: next }: TreeDiff): string {
  const names = old.name === next.name ? old.name : `${old.name} and ${next.name}`;
  return `${names}: ${old.snapshotTime} to ${next.snapshotTime}`;
}

function title({ disk, state, oldSize, newSize, chunks, changedChunks, changedBytes }: DiskDiff): string {
  if (state !== 'compared') return `${disk}: ${state}, ${formatBytes(Math.max(oldSize, newSize))}`;
  const resized =
    oldSize === newSize ? '' : `, resized from ${formatBytes(oldSize)} to ${formatBytes(newSize)}`;
  const size = formatBytes(Math.max(oldSize, newSize));
  return `${disk}: ${changedChunks} of ${countOf(chunks, 'chunk')} changed, ${formatBytes(changedBytes)} of ${size}${resized}`;
}

function diskLines(disk: DiskDiff, all: boolean, map: boolean): string[] {
  const shown = all ? disk.ranges : disk.ranges.slice(0, MAX_RANGES);
  const hidden = disk.ranges.length - shown.length;
  return [
    title(disk),
    ...(map ? mapLines(disk) : []),
    ...shown.map(rangeLine),
    ...(hidden > 0 ? [`  and ${countOf(hidden, 'range')} more: --all lists them`] : []),
  ];
}

function mapLines(disk: DiskDiff): string[] {
  const map = diskMap(disk.chunks, disk.ranges, MAP_COLUMNS * MAP_ROWS);
  return [
    ...textMap(map, MAP_COLUMNS).map((line) => `  ${line}`),
    `  ${scale(disk, map.chunksPerCell, 'character')}`,
  ];
}

function scale({ chunkSize }: DiskDiff, chunksPerCell: number, what: string): string {
  return `each ${what} stands for ${countOf(chunksPerCell, 'chunk')}, ${formatBytes(chunksPerCell * chunkSize)}`;
}

function hex(chunk: number): string {
  return chunk.toString(16).padStart(8, '0');
}

function rangeLine({ first, count, offset, bytes }: ChangedRange): string {
  const chunks = count === 1 ? hex(first) : `${hex(first)}-${hex(first + count - 1)}`;
  return `  ${chunks}  ${countOf(count, 'chunk')}, ${formatBytes(bytes)} at ${formatBytes(offset)}`;
}

function svgDisk(disk: DiskDiff): SvgDisk {
  const map = diskMap(disk.chunks, disk.ranges, MAX_SVG_CELLS);
  const cellBytes = map.chunksPerCell * disk.chunkSize;
  const size = Math.max(disk.oldSize, disk.newSize);
  return {
    title: title(disk),
    scale: scale(disk, map.chunksPerCell, 'square'),
    map,
    describe: (first, end) =>
      `${formatBytes(first * cellBytes)} to ${formatBytes(Math.min(end * cellBytes, size))}`,
  };
}

function writePicture(file: string, diff: TreeDiff): void {
  try {
    replaceFile(path.resolve(file), svgMap(heading(diff), diff.disks.map(svgDisk)), { mode: 0o644 });
  } catch (error) {
    throw failed(`${file} cannot be written: ${messageOf(error)}`, { cause: error });
  }
}
