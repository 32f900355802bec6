import * as fs from 'node:fs';
import { fileURLToPath } from 'node:url';
import { failed, messageOf, systemCode, usage } from '../errors.js';
import { startDaemon } from '../fuse/start-daemon.js';
import type { TransportKind } from '../fuse/transport.js';
import { unmount } from '../fuse/unmount.js';
import { mountAt } from '../host/mountinfo.js';
import { usersOf } from '../host/path-users.js';
import { type ProcessIdentity, signalProcess, waitForEnd } from '../host/process-identity.js';
import { findProcesses } from '../host/process-list.js';
import { Tree } from './tree.js';

/** What the daemon gets, as its argument. */
export interface ImageMountConfig {
  /** Absolute. */
  readonly tree: string;
  readonly mountpoint: string;
  readonly source: string;
  readonly transport: TransportKind;
  readonly verify: boolean;
  readonly allowOther: boolean;
  readonly uid: number;
  readonly gid: number;
  readonly fileMode: number;
  readonly directoryMode: number;
}

export type ImageMountRequest = Omit<ImageMountConfig, 'source'> & {
  /** Damage that readers run into is appended here. */
  readonly logFile: string;
  readonly signal?: AbortSignal | undefined;
};

const DAEMON_SCRIPT = fileURLToPath(new URL('./image-daemon.js', import.meta.url));

/** Begins the source in mountinfo of every mount of images, and tells it from others. */
const SOURCE_PREFIX = 'chunkmount-images:';

const END_TIMEOUT_MS = 10_000;
const READ_AHEAD = 1024 * 1024;

/** The mountpoint, absolute and free of links. Throws a usage error unless it is an empty directory. */
function checkMountpoint(given: string): string {
  try {
    const mountpoint = fs.realpathSync(given);
    const mounted = mountAt(mountpoint);
    if (mounted !== undefined) {
      throw usage(`${mountpoint} is a mountpoint already (${mounted.type})`, {
        hint: `unmount it: chunkmount image-unmount ${mountpoint}`,
      });
    }
    if (fs.readdirSync(mountpoint).length > 0)
      throw usage(`${mountpoint} is not empty`, { hint: 'give an empty directory' });
    return mountpoint;
  } catch (error) {
    if (systemCode(error) === undefined) throw error;
    throw usage(`${given} cannot be mounted on: ${messageOf(error)}`, {
      hint: `make it first: mkdir ${given}`,
      cause: error,
    });
  }
}

/**
 * Shows every disk of a tree as one raw file, `<target>.img`, read-only. Returns their paths once the mount answers. Leaves a
 * daemon; when this throws, nothing is left.
 */
export async function mountImages(request: ImageMountRequest): Promise<string[]> {
  const { logFile, signal, ...given } = request;
  const tree = Tree.open(given.tree);
  tree.close();
  const mountpoint = checkMountpoint(given.mountpoint);
  const config: ImageMountConfig = {
    ...given,
    tree: tree.root,
    mountpoint,
    source: `${SOURCE_PREFIX}${tree.manifest.name}`,
  };
  const { source, transport, allowOther } = config;
  try {
    const script = DAEMON_SCRIPT;
    const args = [JSON.stringify(config)];
    await startDaemon({
      script,
      args,
      logFile,
      transport,
      mountpoint,
      source,
      allowOther,
      readAhead: READ_AHEAD,
      signal,
    });
  } catch (error) {
    await unmountImages(mountpoint, { evenIfNone: true });
    throw error;
  }
  return tree.manifest.disks.map(({ target }) => `${mountpoint}/${target}.img`);
}

/** The daemons that serve a mountpoint. */
function daemonsOf(mountpoint: string): ProcessIdentity[] {
  return findProcesses((argv) => {
    if (argv.at(-2) !== DAEMON_SCRIPT) return false;
    try {
      return (JSON.parse(argv.at(-1) ?? '') as ImageMountConfig).mountpoint === mountpoint;
    } catch {
      return false;
    }
  });
}

/** Ends a mount of images. Throws when it is in use (and says by whom), or when there is none. */
export async function unmountImages(
  given: string,
  options: { readonly evenIfNone?: boolean } = {},
): Promise<void> {
  const mountpoint = fs.realpathSync(given);
  const daemons = daemonsOf(mountpoint);
  const mounted = mountAt(mountpoint);
  if (mounted?.source.startsWith(SOURCE_PREFIX) === true) await unmountUnused(mountpoint);
  else if (options.evenIfNone !== true)
    throw usage(`no images of a tree are mounted at ${mountpoint}`, { hint: 'see what is: findmnt' });
  else for (const daemon of daemons) signalProcess(daemon, 'SIGTERM');
  for (const daemon of daemons) {
    if (!(await waitForEnd(daemon, END_TIMEOUT_MS))) signalProcess(daemon, 'SIGTERM');
  }
}

async function unmountUnused(mountpoint: string): Promise<void> {
  try {
    await unmount(mountpoint);
  } catch (error) {
    const users = usersOf(mountpoint).map(({ pid, command }) => `${command} (process ${pid})`);
    throw failed(`${mountpoint} is in use${users.length === 0 ? '' : ` by ${users.join(', ')}`}`, {
      hint: 'unmount what is mounted from it (findmnt), detach loop devices (losetup -a, losetup -d), then run this again',
      cause: error,
    });
  }
}
