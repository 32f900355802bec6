import * as fs from 'node:fs';
import * as path from 'node:path';
import { type ChunkmountError, failed, messageOf, systemCode, usage } from '../errors.js';
import { unmount } from '../fuse/unmount.js';
import { loopDevicesBelow } from '../host/loop-devices.js';
import { listMounts, mountAt } from '../host/mountinfo.js';
import { usersOf } from '../host/path-users.js';
import { type ProcessIdentity, signalProcess, waitForEnd } from '../host/process-identity.js';
import { findProcesses } from '../host/process-list.js';
import { IMAGE_DAEMON_SCRIPT, type ImageMountConfig, isImageMount } from './image-mount-config.js';

/** How long a daemon may take to end by itself once it is unmounted, and after each signal. */
const END_TIMEOUT_MS = 10_000;

/** Absolute and free of links. Works for a mount whose daemon is gone, too, which cannot be looked at. */
export function placeOf(given: string): string {
  try {
    return fs.realpathSync(given);
  } catch (error) {
    if (systemCode(error) !== 'ENOTCONN') throw error;
    const absolute = path.resolve(given);
    return path.join(fs.realpathSync(path.dirname(absolute)), path.basename(absolute));
  }
}

function notMounted(place: string, cause?: unknown): ChunkmountError {
  return usage(`no images of a tree are mounted at ${place}`, {
    hint: 'see what is mounted: findmnt',
    cause,
  });
}

/** The daemons that serve a mountpoint. */
function daemonsOf(mountpoint: string): ProcessIdentity[] {
  return findProcesses((argv) => {
    if (argv.at(-2) !== IMAGE_DAEMON_SCRIPT) return false;
    try {
      return (JSON.parse(argv.at(-1) ?? '') as ImageMountConfig).mountpoint === mountpoint;
    } catch {
      return false;
    }
  });
}

/** Ends a mount of images. Throws when it is in use (and says by whom), and a usage error when there is none. */
export async function unmountImages(given: string): Promise<string> {
  let mountpoint: string;
  try {
    mountpoint = placeOf(given);
  } catch (error) {
    throw notMounted(given, error);
  }
  const mounted = mountAt(mountpoint);
  if (mounted === undefined || !isImageMount(mounted)) throw notMounted(mountpoint);
  await takeAway(mountpoint);
  return mountpoint;
}

/**
 * Unmounts the images at `mountpoint` (absolute, free of links) if they are mounted, and ends every daemon that serves it. Throws
 * when they are in use. `place` is where they are mounted, if that is elsewhere.
 */
export async function takeAway(mountpoint: string, place = mountpoint): Promise<void> {
  const daemons = daemonsOf(mountpoint);
  const mounted = mountAt(place);
  const wasMounted = mounted !== undefined && isImageMount(mounted);
  if (wasMounted) await unmountUnused(place);
  for (const daemon of daemons) {
    // Unmounting makes a daemon end by itself.
    if (wasMounted && (await waitForEnd(daemon, END_TIMEOUT_MS))) continue;
    signalProcess(daemon, 'SIGTERM');
    if (await waitForEnd(daemon, END_TIMEOUT_MS)) continue;
    signalProcess(daemon, 'SIGKILL');
    if (!(await waitForEnd(daemon, END_TIMEOUT_MS)))
      throw failed(`the daemon of ${mountpoint} (process ${daemon.pid}) cannot be ended`, {
        hint: 'it waits for storage that does not answer: look at dmesg, then unmount again',
      });
  }
}

async function unmountUnused(mountpoint: string): Promise<void> {
  try {
    await unmount(mountpoint);
  } catch (error) {
    const loops = loopDevicesBelow(mountpoint);
    const users = [
      ...usersOf(mountpoint).map(({ pid, command }) => `${command} (process ${pid})`),
      ...loops,
      ...listMounts()
        .filter((mount) => mount.mountpoint.startsWith(`${mountpoint}/`))
        .map((mount) => `the mount ${mount.mountpoint}`),
    ];
    if (users.length === 0) {
      throw failed(`${mountpoint} cannot be unmounted: ${messageOf(error)}`, {
        hint: 'end what uses it, or run this as the user who mounted it',
        cause: error,
      });
    }
    const detach =
      loops.length === 0 ? '' : `, detach it (umount what is mounted from it, losetup -d ${loops.join(' ')})`;
    throw failed(`${mountpoint} is in use by ${users.join(', ')}`, {
      hint: `end what uses it${detach}, then unmount again`,
      cause: error,
    });
  }
}
