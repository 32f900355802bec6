import * as fs from 'node:fs';
import type { Command } from 'commander';
import type { Source } from '../backup/source.js';
import { checkName } from '../chunks/names.js';
import { failed, messageOf, systemCode, usage } from '../errors.js';
import { imageFormat } from '../image/format.js';
import { loadDomain } from '../libvirt/load-domain.js';
import { Virsh } from '../libvirt/virsh.js';
import { listOption } from './list-option.js';
import { addModes, type Mode } from './modes.js';
import { parseList } from './parse.js';

export interface SourceOptions {
  vm?: string;
  allRunning?: boolean;
  image?: string;
  name?: string;
  format?: string;
  /** What the option of `format` is called; `--format` if undefined. */
  formatOption?: string;
  connect?: string;
  exclude?: string;
}

/** What commands with --image go by then. The rest is about VMs: an image that nobody uses stands still by itself. */
const IMAGE_OPTIONS = [
  ...['--image', '--name', '--exclude', '--max-backups', '--keep-lock', '--foreground'],
  // Refused by themselves, with a better reason.
  ...['--vm', '--all-running'],
  ...['--snapshot=auto', '--snapshot=none', '--no-snapshot'],
  ...['--chunk-size', '--layout', '--zero-chunks', '--owner', '--transport', '--direct-io', '--allow-other'],
  ...['--track', '--audit', '--full-scan', '--full-scan-every', '--nice', '--ionice', '--bwlimit'],
  ...['--format', '--image-format', '--compress', '--date'],
];

function sourceModes(verb: string): Mode[] {
  return [
    {
      name: `${verb} --image`,
      when: ({ image }) => image !== undefined,
      takes: IMAGE_OPTIONS,
      instead: { '--snapshot': 'of an image none is made' },
    },
    { name: `${verb} --vm`, when: () => true },
  ];
}

/** `formatOption` names the format of --image, where `--format` means something else. */
export function addSourceOptions(command: Command, formatOption = '--format'): Command {
  return addModes(command, sourceModes(command.name()))
    .addOption(listOption('--vm <names>', 'VMs of libvirt: mail01,devsrv or all'))
    .option('--all-running', 'all VMs that run')
    .addOption(listOption('--image <files>', 'image files or block devices that no VM uses, instead of a VM'))
    .option('--name <name>', 'name of the tree of --image')
    .option(`${formatOption} <format>`, "format of --image (by the file's extension; never by its content)");
}

/** What the options name, in order and without duplicates. Throws usage errors. */
export async function selectSources(options: SourceOptions, signal: AbortSignal): Promise<Source[]> {
  const wantsDomains = options.vm !== undefined || options.allRunning === true;
  if (options.image === undefined) {
    if (!wantsDomains)
      throw usage('nothing to back up was named', { hint: 'give --vm=NAME, or --image=FILE --name=NAME' });
    if (options.name !== undefined || options.format !== undefined) {
      throw usage(`--name and ${options.formatOption ?? '--format'} go with --image`, {
        hint: 'a tree of --vm has the name of its VM',
      });
    }
    const names = await domainNames(options, signal);
    const amongOthers = names.length > 1;
    if (amongOthers) await checkExclude(names, options, signal);
    return names.map((name) => ({ kind: 'vm', name, amongOthers }));
  }
  if (wantsDomains) throw usage('--image and --vm exclude each other', { hint: 'run chunkmount twice' });
  return [imageSource(options.image, options)];
}

function imageSource(files: string, { name, format, formatOption }: SourceOptions): Source {
  if (name === undefined) throw usage('--image needs a name for the tree', { hint: 'add --name=NAME' });
  const images = parseList(files, '--image').map((file) => ({
    path: checkKind(realPath(file)),
    format: imageFormat(file, format, formatOption),
  }));
  return { kind: 'images', name: checkName(name), images };
}

function realPath(file: string): string {
  try {
    return fs.realpathSync(file);
  } catch (error) {
    if (['ENOENT', 'ENOTDIR'].includes(systemCode(error) ?? '')) {
      throw failed(`there is no image ${file}`, {
        hint: 'look at --image: is it spelt right?',
        cause: error,
      });
    }
    throw failed(`the image ${file} cannot be found: ${messageOf(error)}`, {
      hint: 'may this user read all directories above it?',
      cause: error,
    });
  }
}

function checkKind(file: string): string {
  const found = fs.statSync(file);
  if (found.isFile() || found.isBlockDevice()) return file;
  throw failed(`the image ${file} is neither a file nor a block device`, {
    hint: 'look at --image: is it spelt right?',
  });
}

async function domainNames(options: SourceOptions, signal: AbortSignal): Promise<string[]> {
  if (process.getuid!() !== 0) {
    throw failed('backing up a VM of libvirt takes root: its disks and snapshots do', {
      hint: 'run it with sudo; images of your own can be mounted with --image=FILE --name=NAME',
    });
  }
  const virsh = new Virsh({ connect: options.connect, signal });
  virsh.expectQuestions();
  const names: string[] = [];
  if (options.allRunning === true) names.push(...(await virsh.list('active')).map(({ name }) => name));
  if (options.vm === 'all') names.push(...(await virsh.list()).map(({ name }) => name));
  else if (options.vm !== undefined) names.push(...parseList(options.vm, '--vm').map(checkName));
  if (names.length === 0) {
    throw failed(options.vm === undefined ? 'no VM is running' : 'libvirt knows no VM', {
      hint: 'see them all: virsh list --all; another libvirt is named by --connect=URI',
    });
  }
  return [...new Set(names)];
}

/** One list of disks for several VMs, as virt-backup takes it: a disk that none of them has is a mistake. Throws a usage error then. */
async function checkExclude(
  names: readonly string[],
  { exclude, connect }: SourceOptions,
  signal: AbortSignal,
): Promise<void> {
  if (exclude === undefined) return;
  const virsh = new Virsh({ connect, signal });
  const unknown = new Set(parseList(exclude, '--exclude'));
  for (const name of names) {
    const domain = await loadDomain(virsh, name).catch(() => undefined);
    // It will have its own error, and what disks it has nobody knows.
    if (domain === undefined) return;
    for (const { target } of domain.disks) unknown.delete(target);
  }
  if (unknown.size === 0) return;
  throw usage(`none of ${names.join(', ')} has a disk ${[...unknown].join(', ')} to exclude`, {
    hint: 'see their disks: virsh domblklist NAME',
  });
}
