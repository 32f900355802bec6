import * as fs from 'node:fs';
import * as path from 'node:path';
import { Command, Option } from 'commander';
import type { DiskCopy, Point } from '../chain/chain-record.js';
import { checkPlace, choosePoint, openChain, restorePoint } from '../chain/restore-point.js';
import { type ChainResult, type ConsolidateMethod, runChain } from '../chain/run-chain.js';
import { usage } from '../errors.js';
import { makeDirectory } from '../host/durable.js';
import { formatBytes } from '../report/format.js';
import {
  addConnectOption,
  addStateOption,
  COMMIT_TIMEOUT_OPTION,
  commitTimeoutMs,
  type DirectoryOptions,
  quiesceOption,
  stateDirectory,
} from './backup-options.js';
import { type CommandContext, type CommandModule, printResult } from './context.js';
import { countOf } from './count-of.js';
import { failuresOf, forEachName, throwFailures } from './each.js';
import { listOption } from './list-option.js';
import { addModes, type Mode } from './modes.js';
import { parseChoice, parseList } from './parse.js';
import { placeOption } from './place-option.js';
import { refusePartsOfDisks } from './refuse-parts-of-disks.js';
import { selectSources } from './sources.js';

/** The options as commander has them. */
export interface ChainOptions extends DirectoryOptions {
  vm?: string;
  allRunning?: boolean;
  to?: string;
  method: ConsolidateMethod;
  consolidate?: boolean;
  consolidateOnly?: boolean;
  full?: boolean;
  exclude?: string;
  quiesce?: string | boolean;
  overlayDir?: string;
  commitTimeout?: string;
  connect?: string;
  at: string;
  disk?: string;
  format?: 'raw' | 'qcow2';
  force?: boolean;
}

const HELP = `
Forward incremental backups as images. Each run freezes all disks at one point, puts the VM onto a new layer, and copies
what was written since the last run: the first run the whole disks, into DIR/VM/vda.0001.qcow2, each later one the
frozen layer alone, into vda.0002.qcow2, which lies on the copy before. Prints the copies, a line each. chain.json beside
them has the times and sums, 0001.xml the VM's definition. The copies are plain qcow2 images: qemu-img reads each of them
without chunkmount.

The VM stays on the layers, also when it is shut down and started again, and has one more with each run:
  --consolidate        merges them after the copy
  --consolidate-only   merges them, and copies nothing
  --method=blockcommit merges down into the image that was there before, which the VM is on again, alone (default)
  --method=blockpull   merges up into the newest layer; the image that was there before stays below it
Only layers that chunkmount made are merged, and each is removed when its content is where it belongs, and not before.
Disks that --exclude names are left as they are: not put onto a layer, not copied, and not merged.
What blockcommit merged before it was copied is not lost for the chain: the next run compares the whole disk with the
last copy (which takes as long as reading both) and copies what differs.

--full copies the disks as a whole again; the copies before stay, and may be removed when they are not needed. It is what
to do when a copy is gone, a disk was resized, or somebody else changed the VM's layers.

If a run fails or is killed, the next one (or chunkmount cleanup) puts all right: the VM's disks are as they were before
that run, or the point is complete.

  chunkmount chain list DIR/VM
  chunkmount chain restore DIR/VM --to=PATH [--at=latest|NUMBER|DATE] [--disk=vda] [--format=raw|qcow2] [--force]
restore makes an image of a disk as it was at that point. With a date (2026-11-20, 2026-11-20T23:00, 2026-11-21T01:00+02:00)
it is the last one that is not later; a day means its end, and a date without a zone is UTC. PATH is a new file, or a
directory for all disks. The places are looked at, and the sums of all copies that it takes are checked, before anything
is written; a file that --force replaces hands down its owner and mode.

Exit status: 0 done; 1 failed, the VM runs on; 2 usage; 3 locked, or there is a session of mount; 4 a copy is missing or
altered; 5 some VMs are done, some not.

Examples:
  chunkmount chain --vm=mail01 --to=/backup/chains
  chunkmount chain --vm=mail01,devsrv --to=/backup/chains --consolidate --quiesce
  chunkmount chain --vm=mail01 --consolidate-only --method=blockpull
  chunkmount chain list /backup/chains/mail01
  chunkmount chain restore /backup/chains/mail01 --at=2026-11-20 --disk=vda --to=/var/tmp/vda.qcow2`;

const OF_VMS = ['--vm', '--all-running', '--connect', '--exclude', '--commit-timeout'];
const COPYING = [...OF_VMS, '--to', '--full', '--quiesce', '--overlay-dir'];

const BY_EXCLUDING = { '--disk': 'disks are left out with --exclude' };
const NOTHING_COPIED = 'it copies nothing; --consolidate merges after a copy';

const MODES: readonly Mode[] = [
  { name: 'chain list', when: (_, [action]) => action === 'list', takes: [] },
  {
    name: 'chain restore',
    when: (_, [action]) => action === 'restore',
    takes: ['--to', '--at', '--disk', '--format', '--force'],
    instead: { '--exclude': 'disks are chosen with --disk' },
  },
  {
    name: 'chain --consolidate-only',
    when: ({ consolidateOnly }) => consolidateOnly === true,
    takes: [...OF_VMS, '--consolidate-only', '--method'],
    instead: {
      ...BY_EXCLUDING,
      '--to': NOTHING_COPIED,
      '--full': NOTHING_COPIED,
      '--quiesce': NOTHING_COPIED,
      '--overlay-dir': NOTHING_COPIED,
      '--consolidate': NOTHING_COPIED,
    },
  },
  {
    name: 'chain --consolidate',
    when: ({ consolidate }) => consolidate === true,
    takes: [...COPYING, '--consolidate', '--method'],
    instead: BY_EXCLUDING,
  },
  { name: 'chain --vm', when: () => true, takes: COPYING, instead: BY_EXCLUDING },
];

function quiesceOf(value: string | boolean | undefined): 'no' | 'try' | 'require' {
  if (value === undefined || value === false) return 'no';
  return value === true ? 'try' : parseChoice(value, '--quiesce', ['try', 'require']);
}

function summary({ name, point, merged, directory }: ChainResult): string {
  const layers = merged.length === 0 ? '' : `${countOf(merged.length, 'layer')} merged`;
  if (point === null) return `${name}: ${layers || 'nothing to merge'}`;
  const bytes = point.disks.reduce((sum, { size }) => sum + size, 0);
  const copied = `${countOf(point.disks.length, 'disk')}, ${formatBytes(bytes)} copied to ${directory} as point ${point.number}`;
  return `${name}: ${copied}${layers === '' ? '' : `; ${layers}`}`;
}

/** Adds a point to the chain of each VM, one VM after the other. */
export async function runChains(options: ChainOptions, context: CommandContext): Promise<void> {
  const { reporter, signal, insisted } = context;
  const { vm, allRunning, connect, exclude, method, overlayDir, to, consolidateOnly, full = false } = options;
  if (to === undefined && consolidateOnly !== true)
    throw usage('it was not said where the copies go', { hint: 'add --to=DIR, or --consolidate-only' });
  const wanted = { ...(vm === undefined ? {} : { vm }), ...(allRunning === true ? { allRunning } : {}) };
  const other = {
    ...(connect === undefined ? {} : { connect }),
    ...(exclude === undefined ? {} : { exclude }),
  };
  const sources = await selectSources({ ...wanted, ...other }, signal);
  const overlayDirectory = overlayDir === undefined ? undefined : path.resolve(overlayDir);
  const request = {
    state: stateDirectory(options),
    command: 'chain',
    connect,
    to: consolidateOnly === true || to === undefined ? undefined : path.resolve(to),
    consolidate: options.consolidate === true || consolidateOnly === true ? method : undefined,
    exclude: exclude === undefined ? [] : parseList(exclude, '--exclude'),
    full,
    options: { quiesce: quiesceOf(options.quiesce), overlayDirectory },
    commitTimeoutMs: commitTimeoutMs(options),
    reporter,
    signal,
    insisted,
  };
  const names = sources.map(({ name }) => name);
  const amongOthers = names.length > 1;
  const outcomes = await forEachName(names, signal, async (name) => {
    const result = await runChain({ ...request, name, amongOthers });
    reporter.notice(summary(result));
    return result;
  });
  const done = outcomes.flatMap((outcome) => (outcome.ok ? [outcome.value] : []));
  const files = done.flatMap(({ directory, point }) =>
    (point?.disks ?? []).map(({ file }) => path.join(directory!, file)),
  );
  printResult(context, { chains: done, failed: failuresOf(outcomes) }, files);
  throwFailures(outcomes, reporter);
}

function pointLine({ number, time, consistency, disks }: Point): string {
  const copies = disks.map(
    ({ target, size, backing }) => `${target} ${formatBytes(size)}${backing === null ? ' (full)' : ''}`,
  );
  return `${number}\t${time}\t${consistency}\t${copies.join(', ')}`;
}

/** Prints the points of a chain, a line each. */
export function runChainList(directory: string, context: CommandContext): void {
  const { points, name } = openChain(directory);
  printResult(context, { name, points }, points.map(pointLine));
}

/** The image to make of each disk. */
function targetsOf(copies: readonly DiskCopy[], to: string, format: 'raw' | 'qcow2' | undefined) {
  const isDirectory = to.endsWith('/') || fs.statSync(to, { throwIfNoEntry: false })?.isDirectory() === true;
  const byName = to.endsWith('.qcow2') ? 'qcow2' : 'raw';
  if (!isDirectory) {
    if (copies.length === 1) return [{ copy: copies[0]!, to: path.resolve(to), format: format ?? byName }];
    throw usage(`${countOf(copies.length, 'disk')} cannot go into one file`, {
      hint: `give one of them (--disk=${copies[0]?.target}), or a directory: --to=${to}/`,
    });
  }
  makeDirectory(to);
  const kind = format ?? 'raw';
  return copies.map((copy) => ({ copy, to: path.resolve(to, `${copy.target}.${kind}`), format: kind }));
}

/** Makes images of disks as they were at a point. */
export async function runChainRestore(
  directory: string,
  options: ChainOptions,
  context: CommandContext,
): Promise<void> {
  const { reporter, signal } = context;
  if (options.to === undefined) throw usage('it was not said where to restore to', { hint: 'add --to=PATH' });
  const record = openChain(directory);
  const point = choosePoint(record, options.at);
  const wanted =
    options.disk === undefined ? point.disks.map(({ target }) => target) : parseList(options.disk, '--disk');
  const copies = wanted.map((target) => {
    const copy = point.disks.find((one) => one.target === target);
    if (copy !== undefined) return copy;
    throw usage(`point ${point.number} has no disk ${target}`, {
      hint: `it has ${point.disks.map((one) => one.target).join(', ')}`,
    });
  });
  const restored = targetsOf(copies, options.to, options.format);
  refusePartsOfDisks(
    restored.map(({ to }) => to),
    stateDirectory(options),
  );
  // All of them before the first: reading the copies takes long.
  for (const { to } of restored) await checkPlace(to, options.force === true);
  for (const one of restored) {
    await restorePoint({ directory, ...one, force: options.force === true, reporter, signal }, record);
    reporter.notice(`disk ${one.copy.target} of ${record.name} as of ${point.time} restored to ${one.to}`);
  }
  const paths = restored.map(({ to }) => to);
  printResult(context, { name: record.name, point: point.number, time: point.time, images: paths }, paths);
}

export const chainCommand: CommandModule = (context) =>
  addModes(addConnectOption(addStateOption(new Command('chain'))), MODES)
    .description('forward incremental images of VMs, and restoring any point of them')
    .addArgument(
      new Command()
        .createArgument('[action]', 'with a directory: restore or list')
        .choices(['restore', 'list']),
    )
    .argument('[chain]', 'of restore and list: the directory of a chain, DIR/VM')
    .addOption(listOption('--vm <names>', 'VMs of libvirt: mail01,devsrv or all'))
    .option('--all-running', 'all VMs that run')
    .addOption(placeOption('--to <path>', 'the copies go to DIR/VM; of restore: the image to make'))
    .addOption(
      new Option('--method <method>', 'how layers are merged')
        .choices(['blockcommit', 'blockpull'])
        .default('blockcommit'),
    )
    .option('--consolidate', "merge the VM's layers after the copy")
    .option('--consolidate-only', "merge the VM's layers, and copy nothing")
    .option('--full', 'copy the disks as a whole, and begin anew')
    .addOption(listOption('--exclude <disks>', 'disks to leave out, by target: vdb,hdb'))
    .addOption(quiesceOption())
    .addOption(placeOption('--overlay-dir <dir>', 'where layers go (beside each image)'))
    .option(...COMMIT_TIMEOUT_OPTION)
    .option('--at <point>', 'of restore: latest, a number, or a date', 'latest')
    .addOption(listOption('--disk <targets>', 'of restore: only these disks'))
    .addOption(
      new Option('--format <format>', "of restore: the image's (by its name)").choices(['raw', 'qcow2']),
    )
    .option('--force', 'of restore: replace a file that is there')
    .addHelpText('after', HELP)
    .action(async (action: string | undefined, directory: string | undefined, options: ChainOptions) => {
      if (action === undefined) return runChains(options, context());
      if (directory === undefined)
        throw usage(`chain ${action} needs the directory of a chain`, { hint: 'give DIR/VM' });
      if (action === 'list') return runChainList(path.resolve(directory), context());
      return runChainRestore(path.resolve(directory), options, context());
    });
