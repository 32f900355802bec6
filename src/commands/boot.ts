import { Command } from 'commander';
import { chooseTransport } from '../backup/choose-transport.js';
import { usage } from '../errors.js';
import { bootTree } from '../restore/boot.js';
import { finishBoot } from '../restore/boot-finish.js';
import { listBoots } from '../restore/boot-state.js';
import { discardBoot } from '../restore/boot-undo.js';
import { addConnectOption, addStateOption, type DirectoryOptions, stateDirectory } from './backup-options.js';
import { type CommandContext, type CommandModule, printResult } from './context.js';
import { DEFAULT_STORAGE } from './define-options.js';
import { addModes, type Mode } from './modes.js';
import { placeArgument, placeOption } from './place-option.js';
import { refusePartsOfDisks } from './refuse-parts-of-disks.js';

export interface BootOptions extends DirectoryOptions {
  readonly name?: string;
  readonly storage?: string;
  /** False: `--no-network`. */
  readonly network?: boolean;
  readonly connect?: string;
  readonly finish?: string;
  readonly discard?: string;
  readonly list?: boolean;
}

const HELP = `
Starts the VM of a tree at once, whatever its size, without restoring it: its disks are overlays on the tree's images,
which are mounted for it (in STORAGE/NAME.images). It gets a new UUID and new MAC addresses, and the name NAME-boot, so that it
can run beside the original; prints that name. Each chunk is checked when it is first read. The tree must stay as it is until
  --finish NAME    copies everything into the VM's own images, while it runs or while it is off, and unmounts the tree's
                   images: then it is a VM like any other. Interrupted, the same command goes on
  --discard NAME   ends the VM and removes all of it. Works at any time, also after a crash, but not while the VM is
                   backed up. The tree is never changed
After a reboot of the host the images are not mounted: finish it (it is off then), or discard it. Where SELinux confines
QEMU, it has to be allowed to read FUSE file systems: setsebool virt_use_fusefs on.

Exit status: 0 done; 1 failed (a boot that failed leaves nothing; --finish and --discard can be run again); 2 usage; 3 another
command works on it, or it is booted already; 4 the tree is damaged; 128+n ended by signal n.

Examples:
  chunkmount boot /backup/mail01 --no-network        does this backup boot? Without being in the way of the original
  virt-viewer mail01-boot
  chunkmount boot --discard mail01-boot              it does
  chunkmount boot /backup/mail01 --name=mail01       the server died: it runs in seconds
  chunkmount boot --finish mail01                    and needs the backup no more`;

/** Starts a VM from a tree. Writes its name to stdout, or one JSON object. */
export async function runBoot(tree: string, options: BootOptions, context: CommandContext): Promise<void> {
  const { name, storage = DEFAULT_STORAGE, connect } = options;
  const vm = await bootTree(
    {
      tree,
      name,
      storage,
      connect,
      network: options.network !== false,
      transport: chooseTransport('auto', context.reporter),
      state: stateDirectory(options),
    },
    context,
  );
  printResult(context, vm, [vm.name]);
}

/** Copies a booted VM's data. Writes the paths of its images to stdout, or one JSON object. */
export async function runFinish(name: string, options: BootOptions, context: CommandContext): Promise<void> {
  const transport = chooseTransport('auto', context.reporter);
  const vm = await finishBoot({ name, state: stateDirectory(options), transport }, context);
  printResult(
    context,
    vm,
    vm.disks.map(({ file }) => file),
  );
}

export async function runDiscard(name: string, options: BootOptions, context: CommandContext): Promise<void> {
  const state = stateDirectory(options);
  // Without them a backup of the VM could not be cleaned up any more.
  const refuseBelow = (files: readonly string[]) => refusePartsOfDisks(files, state);
  await discardBoot(state, name, { ...context, refuseBelow });
  printResult(context, { discarded: name }, []);
}

export function runBootList(options: BootOptions, context: CommandContext): void {
  const boots = listBoots(stateDirectory(options));
  const lines = boots.map(({ name, tree, begun }) => `${name}  ${begun ?? '-'}  ${tree ?? '-'}`);
  printResult(context, { boots }, lines);
  for (const { name, problem } of boots) if (problem !== null) context.reporter.warn(`${name}: ${problem}`);
  if (boots.length === 0) context.reporter.notice('no VM is booted from a tree');
}

/** Two of them, or one with a tree, are refused by themselves. */
const ACTIONS = ['--finish', '--discard', '--list'];

const BEGUN = { '--connect': 'its libvirt is known since it was booted' };

const MODES: readonly Mode[] = [
  {
    name: 'boot TREE',
    when: (_, args) => args.length > 0,
    takes: [...ACTIONS, '--name', '--storage', '--no-network', '--connect'],
  },
  { name: 'boot --finish', when: ({ finish }) => finish !== undefined, takes: ACTIONS, instead: BEGUN },
  { name: 'boot --discard', when: ({ discard }) => discard !== undefined, takes: ACTIONS, instead: BEGUN },
  { name: 'boot --list', when: ({ list }) => list === true, takes: ACTIONS },
];

type Action = (context: CommandContext) => Promise<void> | void;

/** The one thing that is to be done. */
function choose(tree: string | undefined, options: BootOptions): Action {
  const { finish, discard, list } = options;
  const actions: Action[] = [
    ...(tree === undefined ? [] : [(context: CommandContext) => runBoot(tree, options, context)]),
    ...(finish === undefined ? [] : [(context: CommandContext) => runFinish(finish, options, context)]),
    ...(discard === undefined ? [] : [(context: CommandContext) => runDiscard(discard, options, context)]),
    ...(list === true ? [(context: CommandContext) => runBootList(options, context)] : []),
  ];
  const [action, another] = actions;
  if (action !== undefined && another === undefined) return action;
  throw usage(action === undefined ? 'there is nothing to boot' : 'only one thing can be done at a time', {
    hint: 'give a tree, or --finish NAME, or --discard NAME, or --list',
  });
}

export const bootCommand: CommandModule = (context) =>
  addModes(addConnectOption(addStateOption(new Command('boot'))), MODES)
    .description('start a VM from a tree at once, without restoring it')
    .addArgument(placeArgument('[tree]', 'the directory that holds manifest.json'))
    .option('--name <name>', "the VM's name (NAME-boot)")
    .addOption(
      placeOption(
        '--storage <dir>',
        `where its overlays go, and the mount of the images (${DEFAULT_STORAGE})`,
      ),
    )
    .option('--no-network', 'leave the network cables unplugged (virsh domif-setlink plugs them in)')
    .option('--finish <name>', 'copy everything into the images of a booted VM')
    .option('--discard <name>', 'throw a booted VM away')
    .option('--list', 'the VMs that are booted from trees')
    .addHelpText('after', HELP)
    .action(async (tree: string | undefined, options: BootOptions) => choose(tree, options)(context()));
