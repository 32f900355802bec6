import type { Command } from 'commander';
import { usage } from '../errors.js';
import { Virsh } from '../libvirt/virsh.js';
import { type DefinedVm, defineFromTree } from '../restore/define.js';
import type { Compression } from '../restore/to-qcow2.js';
import type { Tree } from '../restore/tree.js';
import { addConnectOption } from './backup-options.js';
import type { CommandContext } from './context.js';
import type { Mode } from './modes.js';
import { placeOption } from './place-option.js';

/** The options as commander has them. */
export interface DefineOptions {
  readonly define?: boolean;
  readonly name?: string;
  readonly storage?: string;
  readonly sameIdentity?: boolean;
  readonly start?: boolean;
  readonly resume?: boolean;
  /** False: `--no-network`. */
  readonly network?: boolean;
  readonly connect?: string;
}

/** Those of restore that matter here. */
export interface ImageOptions {
  readonly format?: 'raw' | 'qcow2' | undefined;
  readonly compression?: Compression | undefined;
  readonly force: boolean;
  readonly keepGoing: boolean;
}

/** Where libvirt's own tools put images. */
export const DEFAULT_STORAGE = '/var/lib/libvirt/images';

export const DEFINE_HELP = `
--define restores the whole VM: all disks to files in --storage (NAME-vda.raw, …), its NVRAM beside them, and the VM
defined on them from the XML in the tree. It gets a new UUID and new MAC addresses, so that it can run beside the
original; --same-identity keeps both, for a VM that is lost. Its name is the old one if it is free, or --name. Disks that the
tree does not have are taken out. Name, files and room are checked before anything is written; interrupted, the same
command goes on. --resume continues the VM from the memory in the tree (of a backup with --state), as who it was.`;

/** `--define` and what goes with it. */
export function addDefineOptions(command: Command): Command {
  command
    .option('--define', 'restore all disks, and define the VM on them')
    .option('--name <name>', "with --define: the VM's name, if it is to be another one")
    .addOption(placeOption('--storage <dir>', `with --define: where the images go (${DEFAULT_STORAGE})`))
    .option('--same-identity', 'with --define: keep UUID and MAC addresses')
    .option('--start', 'with --define: start the VM')
    .option('--resume', 'with --define: continue the VM from its memory in the tree')
    .option(
      '--no-network',
      'with --define: leave the network cables unplugged (virsh domif-setlink plugs them in)',
    );
  return addConnectOption(command);
}

const ALL_DISKS = 'all disks are restored, to --storage';

export const DEFINE_MODE: Mode = {
  name: 'restore --define',
  when: ({ define }) => define === true,
  takes: [
    ...['--define', '--name', '--storage', '--same-identity', '--start', '--resume'],
    ...['--no-network', '--connect'],
    ...['--format', '--compress', '--force', '--keep-going'],
    // Refused by themselves, with a better reason.
    ...['--size', '--chunk-size'],
  ],
  instead: { '--to': ALL_DISKS, '--disk': ALL_DISKS, '--delta': ALL_DISKS },
};

/** Restores the VM of a tree. */
export async function runDefine(
  tree: Tree,
  options: DefineOptions & ImageOptions,
  { reporter, signal }: CommandContext,
): Promise<DefinedVm> {
  const { name, storage = DEFAULT_STORAGE, format = 'raw', compression, force, keepGoing } = options;
  if (options.start === true && options.resume === true)
    throw usage('--start and --resume exclude each other', { hint: 'leave one of them out' });
  if (compression !== undefined && format !== 'qcow2')
    throw usage('only qcow2 images can be compressed', { hint: 'add --format=qcow2' });
  const request = {
    name,
    storage,
    format,
    compression,
    sameIdentity: options.sameIdentity === true,
    network: options.network !== false,
    force,
    keepGoing,
    afterwards: options.resume === true ? 'resume' : options.start === true ? 'start' : 'nothing',
  } as const;
  const virsh = new Virsh({ connect: options.connect, signal });
  return defineFromTree(tree, request, { virsh, reporter, signal });
}
