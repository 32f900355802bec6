import * as os from 'node:os';
import * as path from 'node:path';
import type { Command, Option } from 'commander';
import type { BackupSettings } from '../backup/settings.js';
import { DEFAULT_CHUNK_SIZE } from '../chunks/geometry.js';
import { usage } from '../errors.js';
import { StateDirectory } from '../session/state-directory.js';
import { parseSnapshotSize } from '../snapshot/snapshot-size.js';
import { choiceOption } from './choice-option.js';
import { listOption } from './list-option.js';
import { parseOwner } from './owner.js';
import { parseChoice, parseChunkSize, parseCount, parseList } from './parse.js';
import { placeOption } from './place-option.js';
import { type ScanOptions, scanSettings } from './scan-options.js';
import { type TreeOptions, treeSettings } from './tree-options.js';

/** Option values as commander has them. */
export interface DirectoryOptions {
  backupdir?: string;
  statedir?: string;
}

export interface BackupOptions extends DirectoryOptions, ScanOptions, TreeOptions {
  exclude?: string;
  /** `--no-snapshot` makes it false. */
  snapshot: string | false;
  quiesce?: string | boolean;
  overlayDir?: string;
  snapsize?: string;
  snapAutoextend?: boolean;
  state?: boolean;
  shutdown?: boolean;
  shutdownTimeout?: string;
  chunkSize?: string;
  transport: string;
  directIo?: boolean;
  allowOther?: boolean;
  owner?: string;
  maxBackups?: string;
  keepLock?: boolean;
  commitTimeout?: string;
  connect?: string;
}

export function addStateOption(command: Command): Command {
  return command.addOption(
    placeOption('--statedir <dir>', 'sessions and chunk indexes (CHUNKMOUNT_STATEDIR; /var/lib/chunkmount)'),
  );
}

/** `--statedir` and `--backupdir`, which every verb that knows sessions takes: the same for the commands of one script. */
export function addDirectoryOptions(command: Command): Command {
  return addStateOption(
    command.addOption(
      placeOption(
        '--backupdir <dir>',
        'where trees are mounted (CHUNKMOUNT_BACKUPDIR; /var/lib/libvirt/backup)',
      ),
    ),
  );
}

export function addConnectOption(command: Command): Command {
  return command.option('--connect <uri>', "libvirt's address, as for virsh");
}

/** For every verb that may have to merge an overlay back. */
export const COMMIT_TIMEOUT_OPTION = [
  '--commit-timeout <seconds>',
  'how long to wait for an overlay to be merged, a disk (3600); it goes on in the background after that',
] as const;

export function commitTimeoutMs(options: { commitTimeout?: string }): number | undefined {
  const { commitTimeout } = options;
  return commitTimeout === undefined ? undefined : parseCount(commitTimeout, '--commit-timeout', 1) * 1000;
}

export function quiesceOption(): Option {
  return choiceOption('--quiesce [how]', "freeze the guest's file systems for the moment; try if not said", [
    'try',
    'require',
  ]);
}

export function transportOption(): Option {
  const choices = ['auto', 'kernel', 'native'];
  return choiceOption('--transport <kind>', 'kernel takes root, native libfuse', choices).default('auto');
}

const SNAPSHOT_CHOICES = ['auto', 'overlay', 'lvm', 'reflink', 'pull', 'none'] as const;

/** Both set one value, of which the last would count without a word. */
function refuseContrarySnapshot(command: Command): Command {
  let kind = 'none';
  let pause = false;
  command.on('option:snapshot', (given: string) => {
    kind = given;
  });
  command.on('option:no-snapshot', () => {
    pause = true;
  });
  return command.hook('preAction', () => {
    if (!pause || kind === 'none') return;
    throw usage(`--no-snapshot and --snapshot=${kind} exclude each other`, {
      hint: 'leave one of them out: with --no-snapshot the VM is paused until cleanup',
    });
  });
}

/** The options that mount, run and dump share. */
export function addBackupOptions(command: Command): Command {
  addConnectOption(addDirectoryOptions(refuseContrarySnapshot(command)));
  return command
    .addOption(listOption('--exclude <disks>', 'disks to leave out, by target: vdb,hdb'))
    .addOption(
      choiceOption('--snapshot <kind>', 'how to freeze the disks', [...SNAPSHOT_CHOICES]).default('auto'),
    )
    .option('--no-snapshot', 'pause the VM until cleanup, and take no snapshot')
    .option('--snapsize <size>', 'room of a thick LVM snapshot for what changes meanwhile: 5G or 20% (5G)')
    .option(
      '--snap-autoextend',
      'enlarge a thick LVM snapshot that is nearly full, while its volume group has room',
    )
    .option('--state', "save the guest's memory, too: what is restored goes on from that moment")
    .option('--shutdown', 'shut the VM down for the snapshot, and start it again at once')
    .option('--shutdown-timeout <seconds>', 'how long it may take; then nothing is done', '300')
    .addOption(quiesceOption())
    .addOption(placeOption('--overlay-dir <dir>', 'where overlays and scratch files go (beside each image)'))
    .option('--chunk-size <size>', 'power of two from 4K to 16M', `${DEFAULT_CHUNK_SIZE / 1024}K`)
    .addOption(transportOption())
    .option('--direct-io', 'bypass the page cache: for readers with large buffers')
    .option('--allow-other', 'without root: let other users into the tree')
    .option('--owner <user[:group]>', 'whom the files of the tree belong to, or of the dump')
    .option('--max-backups <n>', 'do not begin when that many sessions are there already')
    .option('--keep-lock', 'keep the VM locked after cleanup, until chunkmount unlock')
    .option(...COMMIT_TIMEOUT_OPTION);
}

/** In containers there are users whom the system knows by nothing but their number: they have none. */
function homeDirectory(): string {
  try {
    return os.homedir();
  } catch {
    return '/';
  }
}

/** Where an ordinary user's sessions live. A relative path there counts as none: see the XDG Base Directory Specification. */
function userDirectory(): string {
  const { XDG_STATE_HOME = '' } = process.env;
  const states = path.isAbsolute(XDG_STATE_HOME)
    ? XDG_STATE_HOME
    : path.join(homeDirectory(), '.local/state');
  return path.join(states, 'chunkmount');
}

/** Where an option says, else a variable, which counts only if there is something in it. */
function place(given: string | undefined, variable: string, fallback: string): string {
  return path.resolve(given ?? (process.env[variable] || fallback));
}

function isRoot(): boolean {
  return process.getuid!() === 0;
}

export function stateDirectory(options: DirectoryOptions): StateDirectory {
  const fallback = isRoot() ? '/var/lib/chunkmount' : userDirectory();
  return new StateDirectory(place(options.statedir, 'CHUNKMOUNT_STATEDIR', fallback));
}

export function backupDirectory(options: DirectoryOptions): string {
  const fallback = isRoot() ? '/var/lib/libvirt/backup' : path.join(userDirectory(), 'mounts');
  return place(options.backupdir, 'CHUNKMOUNT_BACKUPDIR', fallback);
}

function quiesce(value: string | boolean | undefined): BackupSettings['quiesce'] {
  if (value === undefined || value === false) return 'no';
  return value === true ? 'try' : parseChoice(value, '--quiesce', ['try', 'require']);
}

/** A VM that is only paused has its file systems as they are: who requires them frozen must not get that without a word. */
function refusePausedQuiesce({ snapshot, quiesce: how }: BackupOptions): void {
  if (snapshot !== false || quiesce(how) !== 'require') return;
  throw usage('--no-snapshot and --quiesce=require exclude each other', {
    hint: "a VM that is paused cannot freeze its guest's file systems: leave one of them out",
  });
}

function snapshotKind(value: string | false): BackupSettings['snapshot'] {
  return value === false ? 'none' : parseChoice(value, '--snapshot', SNAPSHOT_CHOICES);
}

function shutdownSettings({ shutdown, shutdownTimeout }: BackupOptions): BackupSettings['shutdown'] {
  const seconds = shutdownTimeout === undefined ? 300 : parseCount(shutdownTimeout, '--shutdown-timeout', 1);
  return shutdown === true ? { timeoutMs: seconds * 1000 } : undefined;
}

/** Checks the options and fills in defaults. Throws usage errors. */
export function backupSettings(options: BackupOptions): BackupSettings {
  refusePausedQuiesce(options);
  const owner = parseOwner(options.owner);
  if (!isRoot() && owner.uid !== process.getuid!()) {
    throw usage('--owner takes root', { hint: 'run as root, or leave it out' });
  }
  return {
    state: stateDirectory(options),
    backupDirectory: backupDirectory(options),
    connect: options.connect,
    exclude: options.exclude === undefined ? [] : parseList(options.exclude, '--exclude'),
    snapshot: snapshotKind(options.snapshot),
    pause: options.snapshot === false,
    shutdown: shutdownSettings(options),
    memory: options.state === true,
    snapshotSize: options.snapsize === undefined ? undefined : parseSnapshotSize(options.snapsize),
    snapshotAutoextend: options.snapAutoextend === true,
    quiesce: quiesce(options.quiesce),
    overlayDirectory: options.overlayDir === undefined ? undefined : path.resolve(options.overlayDir),
    chunkSize: options.chunkSize === undefined ? DEFAULT_CHUNK_SIZE : parseChunkSize(options.chunkSize),
    ...treeSettings(options),
    transport: parseChoice(options.transport, '--transport', ['auto', 'kernel', 'native']),
    directIo: options.directIo === true,
    // Root's trees are closed by their modes; a backup user who owns the files has to get in.
    allowOther: isRoot() || options.allowOther === true,
    owner,
    maxBackups: options.maxBackups === undefined ? 0 : parseCount(options.maxBackups, '--max-backups', 1),
    keepLock: options.keepLock === true,
    commitTimeoutMs: commitTimeoutMs(options),
    ...scanSettings(options),
  };
}
