import * as fs from 'node:fs';
import * as os from 'node:os';
import { messageOf } from '../errors.js';
import { loadFuseNative } from '../fuse/native/load.js';
import { run } from '../host/exec.js';
import { Virsh } from '../libvirt/virsh.js';

/** ok: there. missing: what needs it does not work. poor: it works, with a drawback. */
export type CheckState = 'ok' | 'missing' | 'poor';

export interface CheckResult {
  readonly name: string;
  readonly state: CheckState;
  /** What was found. */
  readonly detail: string;
  /** What it is for, when it is missing. */
  readonly need?: string;
  /** A command that mends it. */
  readonly fix?: string;
  /** Bytes that are free there. */
  readonly free?: number;
}

interface Program {
  readonly program: string;
  readonly versionArgument: string;
  readonly need: string;
  readonly packageName: string;
}

const PROGRAMS: readonly Program[] = [
  {
    program: 'qemu-img',
    versionArgument: '--version',
    need: 'everything: it says where the data of an image lies',
    packageName: 'qemu-utils',
  },
  {
    program: 'qemu-storage-daemon',
    versionArgument: '--version',
    need: 'holding images, and reading compressed ones',
    packageName: 'qemu-system-common',
  },
  { program: 'mount', versionArgument: '--version', need: 'the kernel transport', packageName: 'mount' },
  { program: 'flock', versionArgument: '--version', need: 'locking', packageName: 'util-linux' },
  {
    program: 'virsh',
    versionArgument: '--version',
    need: 'backing up VMs (--vm)',
    packageName: 'libvirt-clients',
  },
  {
    program: 'fusermount3',
    versionArgument: '--version',
    need: 'the native transport, and raw views without root',
    packageName: 'fuse3',
  },
  { program: 'lvs', versionArgument: '--version', need: 'snapshots of LVM volumes', packageName: 'lvm2' },
];

const MIN_NODE_MAJOR = 20;

async function checkProgram({ program, versionArgument, need, packageName }: Program): Promise<CheckResult> {
  try {
    const { stdout, stderr } = await run(program, [versionArgument], { timeoutMs: 10_000 });
    return { name: program, state: 'ok', detail: (stdout || stderr).split('\n')[0]!.trim() };
  } catch (error) {
    return {
      name: program,
      state: 'missing',
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
    const fix = 'npm install --include=optional';
    return { name, state: 'poor', detail: messageOf(error), need: 'mounting without root', fix };
  }
}

async function checkLibvirt(connect: string | undefined): Promise<CheckResult> {
  const name = 'libvirt';
  try {
    const domains = await new Virsh({ connect }).list();
    return { name, state: 'ok', detail: `${domains.length} VMs` };
  } catch (error) {
    return {
      name,
      state: 'missing',
      detail: messageOf(error),
      need: 'backing up VMs (--vm)',
      fix: 'systemctl enable --now libvirtd',
    };
  }
}

function checkRoot(): CheckResult {
  const name = 'user';
  if (process.getuid!() === 0) return { name, state: 'ok', detail: 'root' };
  return {
    name,
    state: 'poor',
    detail: os.userInfo().username,
    need: 'VMs and the kernel transport take root',
    fix: 'sudo chunkmount doctor',
  };
}

/** The nearest directory that exists: ours are made when they are needed. */
function existing(directory: string): string {
  let found = directory;
  while (!fs.existsSync(found)) found = found.slice(0, found.lastIndexOf('/')) || '/';
  return found;
}

/** Why nothing can be made in a directory; undefined if it can. */
function directoryObstacle(place: string): string | undefined {
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
  return { name, state: 'ok', detail: directory, free: bavail * bsize };
}

/** Looks at what chunkmount needs on this host. Changes nothing. */
export async function checkHost(options: {
  readonly stateDirectory: string;
  readonly backupDirectory: string;
  readonly connect: string | undefined;
}): Promise<CheckResult[]> {
  return Promise.all([
    checkNode(),
    checkRoot(),
    checkFuseDevice(),
    checkNative(),
    ...PROGRAMS.map(checkProgram),
    checkLibvirt(options.connect),
    checkDirectory('state directory', options.stateDirectory),
    checkDirectory('backup directory', options.backupDirectory),
  ]);
}
