import * as fs from 'node:fs';
import * as os from 'node:os';
import { messageOf } from '../errors.js';
import { loadFuseNative } from '../fuse/native/load.js';
import { run } from '../host/exec.js';
import { shellWord } from '../host/shell-word.js';
import { type DomainName, Virsh } from '../libvirt/virsh.js';
import { StateDirectory } from '../session/state-directory.js';
import type { CheckResult } from './check-result.js';
import { keptWarnings } from './kept-space.js';
import { checkSessions } from './session-checks.js';
import { checkVms } from './vm-checks.js';

interface Program {
  readonly program: string;
  readonly need: string;
  readonly packageName: string;
  /** What works without it has a drawback. */
  readonly optional?: boolean;
  /** It has no option that tells its version: without a file it says how it is used, and fails. */
  readonly versionless?: boolean;
}

const PROGRAMS: readonly Program[] = [
  {
    program: 'qemu-img',
    need: 'everything: it says where the data of an image lies',
    packageName: 'qemu-utils',
  },
  {
    program: 'qemu-storage-daemon',
    need: 'holding images, and reading compressed ones',
    packageName: 'qemu-system-common',
  },
  { program: 'mount', need: 'the kernel transport', packageName: 'mount' },
  { program: 'flock', need: 'locking', packageName: 'util-linux' },
  {
    program: 'virsh',
    need: 'backing up VMs (--vm)',
    packageName: 'libvirt-clients',
  },
  {
    program: 'fusermount3',
    need: 'the native transport, and raw views without root',
    packageName: 'fuse3',
  },
  { program: 'lvs', need: 'snapshots of LVM volumes', packageName: 'lvm2' },
  {
    program: 'thin_delta',
    need: 'knowing what is used of thin LVM volumes, and what changed (--keep-snapshot)',
    packageName: 'thin-provisioning-tools',
    optional: true,
  },
  {
    program: 'filefrag',
    need: 'knowing what changed between clones (--snapshot=reflink)',
    packageName: 'e2fsprogs',
    optional: true,
    versionless: true,
  },
  {
    program: 'losetup',
    need: 'single files out of a mounted image',
    packageName: 'mount',
    optional: true,
  },
  {
    program: 'xxhsum',
    need: 'checking a backup without chunkmount',
    packageName: 'xxhash',
    optional: true,
  },
];

const MIN_NODE_MAJOR = 20;

async function checkProgram(wanted: Program): Promise<CheckResult> {
  const { program, need, packageName, optional = false, versionless = false } = wanted;
  try {
    if (versionless) {
      await run(program, [], { timeoutMs: 10_000, accept: [1] });
      return { name: program, state: 'ok', detail: 'is there' };
    }
    const { stdout, stderr } = await run(program, ['--version'], { timeoutMs: 10_000 });
    return { name: program, state: 'ok', detail: (stdout || stderr).split('\n')[0]!.trim() };
  } catch (error) {
    return {
      name: program,
      state: optional ? 'poor' : 'missing',
      detail: messageOf(error),
      need,
      fix: `apt-get install ${packageName}`,
    };
  }
}

function checkNode(): CheckResult {
  const { version } = process;
  const major = Number(version.slice(1).split('.')[0]);
  if (major >= MIN_NODE_MAJOR) return { name: 'node', state: 'ok', detail: version };
  return {
    name: 'node',
    state: 'missing',
    detail: version,
    need: 'everything',
    fix: `install Node.js ${MIN_NODE_MAJOR} or newer`,
  };
}

function checkFuseDevice(): CheckResult {
  const name = '/dev/fuse';
  const need = 'mounting trees';
  if (!fs.existsSync(name))
    return { name, state: 'missing', detail: 'is not there', need, fix: 'modprobe fuse' };
  try {
    fs.accessSync(name, fs.constants.R_OK | fs.constants.W_OK);
    return { name, state: 'ok', detail: `kernel ${os.release()}` };
  } catch {
    return {
      name,
      state: 'missing',
      detail: 'cannot be opened by this user',
      need,
      fix: 'chmod 0666 /dev/fuse',
    };
  }
}

function checkNative(): CheckResult {
  const name = 'fuse-native';
  try {
    loadFuseNative();
    return { name, state: 'ok', detail: 'can be loaded' };
  } catch (error) {
    const fix = 'npm install -g --ignore-scripts --include=optional chunkmount-*.tgz';
    return { name, state: 'poor', detail: messageOf(error), need: 'mounting without root', fix };
  }
}

/** QEMU's programs are built with or without it. */
async function checkFuseExport(): Promise<CheckResult[]> {
  try {
    const { stdout } = await run('qemu-storage-daemon', ['--help'], { timeoutMs: 10_000 });
    if (/--export \[type=\]fuse,/.test(stdout)) return [];
  } catch {
    // That it is missing is said of the program.
    return [];
  }
  return [
    {
      name: 'FUSE in qemu-storage-daemon',
      state: 'missing',
      detail: 'this one was built without it',
      need: 'reading compressed images, and formats of which only QEMU knows the inside',
      fix: 'apt-get install qemu-system-common',
    },
  ];
}

function checkLoopControl(): CheckResult {
  const name = '/dev/loop-control';
  const need = 'single files out of a mounted image';
  if (fs.existsSync(name)) return { name, state: 'ok', detail: 'is there' };
  return { name, state: 'poor', detail: 'is not there', need, fix: 'modprobe loop' };
}

interface LibvirtWanted {
  readonly connect: string | undefined;
  /** All if undefined. */
  readonly vms: readonly string[] | undefined;
  readonly overlayDirectory: string | undefined;
  readonly stateDirectory: string;
}

async function checkLibvirt(options: LibvirtWanted): Promise<CheckResult[]> {
  const { connect, vms, overlayDirectory, stateDirectory } = options;
  const name = 'libvirt';
  const virsh = new Virsh({ connect });
  let domains: DomainName[];
  try {
    domains = await virsh.list();
  } catch (error) {
    const fix = 'systemctl enable --now libvirtd';
    return [
      { name, state: 'missing', detail: messageOf(error), need: 'backing up VMs (--vm)', fix },
      ...(vms ?? []).map((vm) => unknownVm(vm)),
    ];
  }
  const wanted = domains.filter((domain) => vms?.includes(domain.name) ?? true);
  const unknown = (vms ?? []).filter((vm) => !domains.some((domain) => domain.name === vm));
  return [
    { name, state: 'ok', detail: domains.length === 1 ? '1 VM' : `${domains.length} VMs` },
    ...(await checkVms({ virsh, domains: wanted, overlayDirectory, stateDirectory })),
    ...unknown.map((vm) => unknownVm(vm)),
  ];
}

function unknownVm(name: string): CheckResult {
  return {
    name,
    state: 'missing',
    detail: 'libvirt knows no such VM',
    need: 'backing it up',
    fix: 'virsh list --all',
  };
}

/** Their number, if the system knows no name. */
function userName(): string {
  try {
    return os.userInfo().username;
  } catch {
    return String(process.getuid!());
  }
}

function checkRoot(): CheckResult {
  const name = 'user';
  if (process.getuid!() === 0) return { name, state: 'ok', detail: 'root' };
  return {
    name,
    state: 'poor',
    detail: userName(),
    need: 'VMs and the kernel transport take root',
    fix: 'sudo chunkmount doctor',
  };
}

/** A symbolic link, wherever it leads. */
function isLink(place: string): boolean {
  try {
    return fs.lstatSync(place).isSymbolicLink();
  } catch {
    return false;
  }
}

/** The nearest directory that exists, or what is in its place: ours are made when they are needed. */
function existing(directory: string): string {
  let found = directory;
  while (!fs.existsSync(found) && !isLink(found)) found = found.slice(0, found.lastIndexOf('/')) || '/';
  return found;
}

/** Why nothing can be made in a directory; undefined if it can. */
function directoryObstacle(place: string): string | undefined {
  if (!fs.existsSync(place)) return `${place} is a symbolic link that leads nowhere`;
  if (!fs.statSync(place).isDirectory()) return `${place} is no directory`;
  try {
    fs.accessSync(place, fs.constants.W_OK);
    return undefined;
  } catch {
    return `${place} cannot be written`;
  }
}

function checkDirectory(name: string, directory: string): CheckResult {
  const place = existing(directory);
  const obstacle = directoryObstacle(place);
  if (obstacle !== undefined) {
    const fix = 'choose another (--statedir, --backupdir)';
    return { name, state: 'missing', detail: obstacle, need: 'sessions', fix };
  }
  const { bavail, bsize } = fs.statfsSync(place);
  const free = bavail * bsize;
  // Whoever may write there could have root undo what he likes.
  const poor = (detail: string, fix: string): CheckResult => {
    return { name, state: 'poor', detail, need: 'safety', fix: `${fix} ${shellWord(directory)}`, free };
  };
  const { mode, uid } = fs.statSync(place);
  if (place === directory && ![0, process.geteuid!()].includes(uid))
    return poor(`${directory} belongs to the user ${uid}`, 'chown root');
  if (place === directory && (mode & 0o022) !== 0)
    return poor(`others may write to ${directory}`, 'chmod go-w');
  return { name, state: 'ok', detail: directory, free };
}

/** The overlays that --keep-overlay left: they grow. */
function checkKept(stateDirectory: string): CheckResult[] {
  const state = new StateDirectory(stateDirectory);
  return state.kept().flatMap((vm) => {
    const warnings = keptWarnings({ name: vm, state });
    const name = `${vm}: kept overlay`;
    const fix = `chunkmount cleanup --kept --vm=${vm}`;
    return warnings.map((detail) => ({ name, state: 'poor' as const, detail, need: 'the VM to go on', fix }));
  });
}

/** Looks at what chunkmount needs on this host. Changes nothing. */
export async function checkHost(
  options: LibvirtWanted & { readonly backupDirectory: string },
): Promise<CheckResult[]> {
  const checks = await Promise.all([
    checkNode(),
    checkRoot(),
    checkFuseDevice(),
    checkLoopControl(),
    checkNative(),
    ...PROGRAMS.map(checkProgram),
    checkFuseExport(),
    checkLibvirt(options),
    checkDirectory('state directory', options.stateDirectory),
    checkDirectory('backup directory', options.backupDirectory),
    checkSessions(options.stateDirectory, options.vms),
    checkKept(options.stateDirectory),
  ]);
  return checks.flat();
}
