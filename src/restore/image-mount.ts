import * as fs from 'node:fs';
import * as path from 'node:path';
import { type ChunkmountError, messageOf, systemCode, usage } from '../errors.js';
import { WaitingDaemon } from '../fuse/start-daemon.js';
import { mountAt, mountpointsOf } from '../host/mountinfo.js';
import {
  IMAGE_DAEMON_SCRIPT,
  type ImageMountConfig,
  imageMountSource,
  imagePath,
  isImageMount,
} from './image-mount-config.js';
import { placeOf, takeAway } from './image-unmount.js';
import { Tree } from './tree.js';

function unusable(given: string, error: unknown): ChunkmountError {
  const code = systemCode(error);
  const why = code === 'ENOENT' ? 'there is no such directory' : (code ?? messageOf(error));
  const hint = code === 'ENOENT' ? `make it first: mkdir ${given}` : 'give an empty directory';
  return usage(`${given} cannot be mounted on: ${why}`, { hint, cause: error });
}

export type ImageMountRequest = Omit<ImageMountConfig, 'source'> & {
  /** Damage that readers run into is appended here. */
  readonly logFile: string;
  readonly signal?: AbortSignal | undefined;
};

/** Bytes that the kernel may read ahead: readers of images mostly want all of them. */
const READ_AHEAD = 1024 * 1024;

/** The mountpoint, absolute and free of links. Throws a usage error unless it is an empty directory. */
function checkMountpoint(given: string): string {
  let mountpoint: string;
  let names: string[];
  try {
    mountpoint = placeOf(given);
    names = mountAt(mountpoint) === undefined ? fs.readdirSync(mountpoint) : [];
  } catch (error) {
    throw unusable(given, error);
  }
  const mounted = mountAt(mountpoint);
  if (mounted !== undefined) {
    const verb = isImageMount(mounted) ? 'chunkmount image-unmount' : 'umount';
    throw usage(`${mountpoint} is a mountpoint already (${mounted.type})`, {
      hint: `give another directory, or unmount it: ${verb} ${mountpoint}`,
    });
  }
  if (names.length > 0) throw usage(`${mountpoint} is not empty`, { hint: 'give an empty directory' });
  return mountpoint;
}

/** The daemon would be the first to find out, and has nobody to tell. */
function checkLog(file: string): void {
  try {
    fs.closeSync(fs.openSync(file, 'a', 0o600));
  } catch (error) {
    throw usage(`the log ${file} cannot be written: ${systemCode(error) ?? error}`, {
      hint: 'give another --log, in a directory that exists',
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
  const tree = Tree.open(given.tree, given.plain);
  tree.close();
  const mountpoint = checkMountpoint(given.mountpoint);
  checkLog(logFile);
  const source = imageMountSource(tree.manifest.name);
  const config: ImageMountConfig = { ...given, tree: path.resolve(given.tree), mountpoint, source };
  const { transport, allowOther } = config;
  const script = IMAGE_DAEMON_SCRIPT;
  const args = [JSON.stringify(config)];
  const readAhead = READ_AHEAD;
  try {
    const daemon = await WaitingDaemon.start({ script, args, logFile, transport });
    try {
      await daemon.mount({ mountpoint, source, allowOther, readAhead, signal });
    } finally {
      daemon.drop();
    }
    signal?.throwIfAborted();
  } catch (error) {
    // It is elsewhere if a link was put in the mountpoint's place meanwhile.
    await takeAway(mountpoint, mountpointsOf(source)[0]);
    throw error;
  }
  return tree.manifest.disks.map(({ target }) => imagePath(mountpoint, target));
}
