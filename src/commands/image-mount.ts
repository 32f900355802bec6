import * as path from 'node:path';
import { Command } from 'commander';
import { chooseTransport } from '../backup/choose-transport.js';
import { usage } from '../errors.js';
import { mountImages } from '../restore/image-mount.js';
import { unmountImages } from '../restore/image-unmount.js';
import { transportOption } from './backup-options.js';
import { type CommandContext, type CommandModule, printResult } from './context.js';
import { warnOfOwnMounts } from './own-mounts.js';
import { parseOwner } from './owner.js';
import { parseChoice } from './parse.js';
import { placeArgument } from './place-option.js';
import { addPlainOptions, PLAIN_HELP, type PlainOptions, plainShape } from './plain-options.js';

export interface ImageMountOptions extends PlainOptions {
  verify: boolean;
  transport: string;
  allowOther?: boolean;
  owner?: string;
  log?: string;
}

const MOUNT_HELP = `
Shows every disk of a tree (or of any plain copy of one) as a raw file, read-only: vda.img, vdb.img, … Prints their paths.
A chunk is compared with its sum when it is first read; a damaged one is an input/output error, and is named in --log.
--no-verify shows damaged chunks as they are (missing ones and those of a wrong size stay errors), and needs no sums.
${PLAIN_HELP}

Exit status: 0 mounted; 1 failed, and nothing is left; 2 usage; 4 the tree's manifest or sums are missing or damaged.

Example, single files out of a backup:
  mkdir /mnt/images /mnt/files
  chunkmount image-mount /backup/mail01 /mnt/images
  losetup --find --show --read-only --partscan /mnt/images/vda.img      prints /dev/loopN
  mount -o ro,noload /dev/loopNp1 /mnt/files                            for XFS: ro,norecovery
  … copy …
  umount /mnt/files; losetup -d /dev/loopN; chunkmount image-unmount /mnt/images
noload and norecovery are for the journal of a VM that ran: it cannot be replayed on an image that is read-only.`;

const UNMOUNT_HELP = `
Exit status: 0 unmounted; 1 it is in use, and by whom; 2 there is no such mount.

Example:
  chunkmount image-unmount /mnt/images`;

/** Files are for their owner alone; it is the content of other people's disks. */
const FILE_MODE = 0o400;
const DIRECTORY_MODE = 0o500;

export async function runImageMount(
  tree: string,
  mountpoint: string,
  options: ImageMountOptions,
  context: CommandContext,
): Promise<void> {
  const wanted = parseChoice(options.transport, '--transport', ['auto', 'kernel', 'native']);
  const owner = parseOwner(options.owner);
  if (process.getuid!() !== 0 && owner.uid !== process.getuid!()) {
    throw usage('--owner takes root', { hint: 'run as root, or leave it out' });
  }
  const images = await mountImages({
    tree,
    plain: plainShape(options),
    mountpoint,
    transport: chooseTransport(wanted, context.reporter),
    verify: options.verify,
    allowOther: process.getuid!() === 0 || options.allowOther === true,
    ...owner,
    fileMode: FILE_MODE,
    directoryMode: DIRECTORY_MODE,
    logFile: path.resolve(options.log ?? '/dev/null'),
    signal: context.signal,
  });
  const where = path.resolve(mountpoint);
  warnOfOwnMounts(
    [where],
    'programs that are to read the images have to run in the same one',
    context.reporter,
  );
  printResult(context, { images }, images);
}

export const imageMountCommand: CommandModule = (context) =>
  addPlainOptions(new Command('image-mount'))
    .description('show the disks of a tree as raw images')
    .addArgument(placeArgument('<tree>', 'the directory that holds manifest.json'))
    .addArgument(placeArgument('<mountpoint>', 'an empty directory'))
    .option('--no-verify', 'do not compare what is read with the sums')
    .addOption(transportOption())
    .option('--allow-other', 'without root: let other users in')
    .option('--owner <user[:group]>', 'whom the images belong to')
    .option('--log <file>', 'where damaged chunks that readers run into are named')
    .addHelpText('after', MOUNT_HELP)
    .action(async (tree: string, mountpoint: string, options: ImageMountOptions) =>
      runImageMount(tree, mountpoint, options, context()),
    );

export async function runImageUnmount(given: string, context: CommandContext): Promise<void> {
  printResult(context, { unmounted: await unmountImages(given) }, []);
}

export const imageUnmountCommand: CommandModule = (context) =>
  new Command('image-unmount')
    .description('end an image-mount')
    .addArgument(placeArgument('<mountpoint>', 'as given to image-mount'))
    .addHelpText('after', UNMOUNT_HELP)
    .action(async (mountpoint: string) => runImageUnmount(mountpoint, context()));
