import * as fs from 'node:fs';
import * as path from 'node:path';
import { Command, Option } from 'commander';
import { ChunkmountError, failed, systemCode, usage } from '../errors.js';
import { makeDirectory } from '../host/durable.js';
import { formatBytes } from '../report/format.js';
import { type ChunkDamage, describeRun, joinDamages } from '../restore/damage.js';
import type { PlainShape } from '../restore/plain-tree.js';
import type { RestoreResult } from '../restore/restore-disk.js';
import { restoreDisks } from '../restore/restore-disks.js';
import type { RestoreRequest } from '../restore/restore-request.js';
import { restoreToStream } from '../restore/restore-stream.js';
import type { Compression } from '../restore/to-qcow2.js';
import { Tree } from '../restore/tree.js';
import type { StateDirectory } from '../session/state-directory.js';
import { addStateOption, type DirectoryOptions, stateDirectory } from './backup-options.js';
import { type CommandContext, type CommandModule, printResult } from './context.js';
import { countOf } from './count-of.js';
import {
  addDefineOptions,
  DEFINE_HELP,
  DEFINE_MODE,
  type DefineOptions,
  runDefine,
} from './define-options.js';
import { disksOption } from './list-option.js';
import { addModes, type Mode } from './modes.js';
import { placeArgument, placeOption } from './place-option.js';
import { addPlainOptions, PLAIN_HELP, type PlainOptions, plainShape } from './plain-options.js';
import { refusePartsOfDisks } from './refuse-parts-of-disks.js';

export interface RestoreOptions {
  readonly tree: string;
  /** Targets; all disks of the tree if undefined. */
  readonly disks?: readonly string[] | undefined;
  /** A file, a block device, a directory, or `-` for standard output. */
  readonly to: string;
  /** By the target's extension if undefined. */
  readonly format?: 'raw' | 'qcow2' | undefined;
  readonly compression?: Compression | undefined;
  readonly force: boolean;
  readonly delta: boolean;
  readonly keepGoing: boolean;
  /** The tree is a copy of a chunkfs mount. */
  readonly plain?: PlainShape | undefined;
  /** Where to look whether a VM's overlay lies on what would be overwritten; nowhere if undefined. */
  readonly state?: StateDirectory | undefined;
}

/** The options as commander has them. */
interface RestoreFlags
  extends Omit<RestoreOptions, 'tree' | 'disks' | 'compression' | 'to' | 'plain' | 'state'>,
    Pick<DirectoryOptions, 'statedir'>,
    DefineOptions,
    PlainOptions {
  readonly to?: string;
  readonly disk?: readonly string[];
  readonly compress?: Compression;
}

const STDOUT = '-';
/** A person reads no more; `--json` has them all. */
const MAX_SHOWN = 100;

const HELP = `
Rebuilds the image of a disk from a tree, or any plain copy of one. Every chunk is checked against the sums while it is
read. A file appears under its name when it is complete and on disk; interrupted, the same command goes on.

--to may be
  a new file          raw, or qcow2 if it ends in .qcow2; chunks of zeros become holes
  a block device      of at least the disk's size, with --force or --delta
  a directory         gets a file for each disk, vda.raw or vda.qcow2; with a / at the end it is made
  -                   writes a raw image to standard output
${DEFINE_HELP}
${PLAIN_HELP}

Exit status: 0 restored; 1 failed; 2 wrong usage; 3 another restore to the same file is running; 4 chunks are missing
or corrupt (with --keep-going: restored, except for those listed); 128+n ended by signal n.

Examples:
  chunkmount restore /backup/mail01 --to=/var/lib/libvirt/images/mail01.qcow2 --disk=vda
  chunkmount restore /backup/mail01 --to=/var/lib/libvirt/images/mail01/
  chunkmount restore /backup/mail01 --disk=vda --to=/dev/vg0/mail01 --force
  chunkmount restore /backup/mail01 --disk=vda --to=/dev/vg0/mail01 --delta     roll back: writes only what differs
  chunkmount restore /backup/mail01 --disk=vda --to=- | ssh host 'dd of=/dev/vg0/mail01 bs=1M'
  chunkmount restore /backup/mail01 --define --same-identity --start           the server died: everything back
  chunkmount restore /backup/mail01 --define --name=mail01-test --no-network   a second one, beside the original`;

const MODES: readonly Mode[] = [
  DEFINE_MODE,
  {
    name: 'restore --to=-',
    when: ({ to }) => to === STDOUT,
    // --compress and --delta are refused by themselves, and --format unless it is raw.
    takes: [
      ...['--to', '--disk', '--format', '--compress', '--delta', '--keep-going'],
      ...['--size', '--chunk-size'],
    ],
  },
  {
    name: 'restore --to',
    when: () => true,
    takes: [
      ...['--to', '--disk', '--format', '--compress', '--force', '--delta', '--keep-going'],
      ...['--size', '--chunk-size'],
    ],
  },
];

export const restoreCommand: CommandModule = (context) => {
  const command = new Command('restore')
    .summary('rebuild disk images from a tree')
    .description('Rebuilds disk images from a tree.')
    .addArgument(placeArgument('<tree>', 'the directory that holds manifest.json'))
    .addOption(placeOption('--to <path>', 'file, block device, directory, or - for standard output'))
    .addOption(disksOption())
    .addOption(new Option('--format <format>', 'format of the image').choices(['raw', 'qcow2']))
    .addOption(
      new Option('--compress [method]', 'compress a qcow2 image').choices(['zlib', 'zstd']).preset('zlib'),
    )
    .option('--force', 'replace an existing file, overwrite a block device', false)
    .option(
      '--delta',
      'bring an existing raw image or block device up to date, writing only what differs',
      false,
    )
    .option('--keep-going', 'put zeros in place of damaged chunks and list them', false)
    .addHelpText('after', HELP);
  return addModes(addPlainOptions(addStateOption(addDefineOptions(command))), MODES).action(
    async (tree: string, flags: RestoreFlags) => {
      if (flags.define === true) return runRestoreVm(tree, flags, context());
      const { disk: disks, compress: compression, to, format, force, delta, keepGoing } = flags;
      const plain = plainShape(flags);
      if (to === undefined)
        throw usage('it was not said where to restore to', { hint: 'add --to=PATH, or --define' });
      const state = stateDirectory(flags);
      const given = { tree, disks, compression, to, format, force, delta, keepGoing, plain, state };
      await runRestore(given, context());
    },
  );
};

/** Restores all disks of a tree and defines its VM. Writes the VM's name to stdout, or one JSON object. Throws as runRestore does. */
async function runRestoreVm(directory: string, flags: RestoreFlags, context: CommandContext): Promise<void> {
  if (plainShape(flags) !== undefined) {
    throw usage('a copy of a chunkfs mount has no VM to define', { hint: 'leave out --define' });
  }
  const tree = Tree.open(directory);
  try {
    const vm = await runDefine(tree, { ...flags, compression: flags.compress }, context);
    for (const disk of vm.disks) context.reporter.notice(summary(disk));
    printResult(context, { tree: tree.root, ...vm }, [vm.name]);
    finish(tree, vm.disks, context);
  } finally {
    tree.close();
  }
}

/**
 * Restores disks of a tree. Writes the paths of the images to stdout, or one JSON object, or the image itself. Throws an error of kind
 * `integrity` when chunks were damaged, with `keepGoing` after everything else has been done.
 */
export async function runRestore(options: RestoreOptions, context: CommandContext): Promise<void> {
  const tree = Tree.open(options.tree, options.plain);
  try {
    const targets = options.disks ?? tree.manifest.disks.map((disk) => disk.target);
    for (const target of targets) tree.disk(target);
    if (options.to === STDOUT) await toStdout(tree, targets, options, context);
    else await toPaths(tree, targets, options, context);
  } finally {
    tree.close();
  }
}

/** The one disk that a place for one disk is meant for. */
function single(tree: Tree, targets: readonly string[]): string {
  const [first, second] = targets;
  if (first !== undefined && second === undefined) return first;
  throw usage(`${tree.root} has ${targets.length} disks: ${targets.join(', ')}`, {
    hint: `choose one with --disk, or restore all to a directory: --to=DIR/`,
  });
}

async function toStdout(
  tree: Tree,
  targets: readonly string[],
  options: RestoreOptions,
  { reporter, stdout, signal, json }: CommandContext,
): Promise<void> {
  const { keepGoing, delta, format = 'raw', compression } = options;
  if (format !== 'raw' || compression !== undefined || delta || json) {
    throw usage('--to=- gives a raw image and nothing else', {
      hint: 'leave out --format, --compress, --delta and --json',
    });
  }
  if ('isTTY' in stdout && stdout.isTTY === true) {
    throw usage('an image is nothing for a terminal', { hint: 'redirect the output to a file or a program' });
  }
  const target = single(tree, targets);
  const { damage, damageCount } = await restoreToStream(tree, target, stdout, {
    reporter,
    signal,
    keepGoing,
  });
  finish(tree, [{ disk: target, damage, damageCount }], { reporter });
}

/** An image in a tree is what verify calls damage, and the next rsync --delete removes; `--to=vda` from within is easily typed. */
function refuseInside({ root, isPlain, manifest }: Tree, to: string): void {
  const tree = fs.realpathSync(isPlain ? path.join(root, manifest.disks[0]!.directory) : root);
  let place = path.resolve(to);
  while (!fs.existsSync(place)) place = path.dirname(place);
  if (!`${fs.realpathSync(place)}/`.startsWith(`${tree}/`)) return;
  throw usage(`${to} lies in the tree, which stays as it is`, { hint: 'give a place outside of it' });
}

function makePlace(directory: string): void {
  try {
    makeDirectory(directory);
  } catch (error) {
    throw failed(`the directory ${directory} cannot be made: ${systemCode(error) ?? error}`, {
      hint: 'give another one, or make it first',
      cause: error,
    });
  }
}

/** Where each disk goes. */
function destinations(tree: Tree, targets: readonly string[], options: RestoreOptions): Map<string, string> {
  const { to, format = 'raw' } = options;
  refuseInside(tree, to);
  if (to.endsWith('/')) makePlace(to);
  if (fs.existsSync(`${to}/.`)) {
    return new Map(targets.map((target) => [target, path.join(to, `${target}.${format}`)]));
  }
  return new Map([[single(tree, targets), to]]);
}

async function toPaths(
  tree: Tree,
  targets: readonly string[],
  options: RestoreOptions,
  context: CommandContext,
): Promise<void> {
  const { compression, force, delta, keepGoing } = options;
  const results: RestoreResult[] = [];
  const places = destinations(tree, targets, options);
  if (options.state !== undefined) refusePartsOfDisks([...places.values()], options.state);
  const requests = new Map<string, RestoreRequest>();
  for (const [target, to] of places) {
    const format = options.format ?? (to.endsWith('.qcow2') ? 'qcow2' : 'raw');
    requests.set(target, { to, format, compression, force, delta, keepGoing });
  }
  for await (const result of restoreDisks(tree, requests, context)) {
    context.reporter.notice(summary(result));
    results.push(result);
  }
  const lines = results.map((result) => result.to);
  printResult(context, { tree: tree.root, disks: results }, lines);
  finish(tree, results, context);
}

function summary({ disk, to, size, chunks, written, unchanged, zero }: RestoreResult): string {
  const parts = [
    `${written} of ${countOf(chunks, 'chunk')} written`,
    ...(unchanged > 0 ? [`${unchanged} were there already`] : []),
    ...(zero > 0 ? [`${zero} are zeros`] : []),
  ];
  return `${disk} (${formatBytes(size)}) restored to ${to}: ${parts.join(', ')}`;
}

interface Damaged {
  readonly disk: string;
  readonly damage: readonly ChunkDamage[];
  readonly damageCount: number;
}

/** Lists what was damaged, and throws if anything was. */
function finish(
  tree: Tree,
  results: readonly Damaged[],
  { reporter }: Pick<CommandContext, 'reporter'>,
): void {
  const damage = results.flatMap((result) => result.damage);
  const count = results.reduce((sum, result) => sum + result.damageCount, 0);
  if (count === 0) return;
  const runs = joinDamages(damage);
  for (const run of runs.slice(0, MAX_SHOWN)) reporter.warn(describeRun(run));
  if (runs.length > MAX_SHOWN) reporter.warn(`and ${runs.length - MAX_SHOWN} more: --json lists them`);
  throw new ChunkmountError(
    'integrity',
    `${countOf(count, 'chunk')} of ${tree.root} could not be restored as backed up`,
    {
      hint: 'they are zeros now, or could not be checked; take them from another copy of this backup and use --delta',
      details: { count },
    },
  );
}
