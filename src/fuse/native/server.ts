import * as fs from 'node:fs';
import type Fuse from 'fuse-native';
import { failed } from '../../errors.js';
import { createCounters, loadFactory, type ServeOptions, type Server, sumCounters } from '../transport.js';
import type { InodeNumbers } from './inode-numbers.js';
import { loadFuseNative } from './load.js';
import { mountOptions } from './mount-options.js';
import { mountObstacle } from './obstacles.js';
import { NativeOperations } from './operations.js';

export interface NativeServeOptions extends ServeOptions {
  readonly inodes: InodeNumbers;
}

/** How soon the end of a mount is noticed; costs one readlink each time. */
const END_POLL_MS = 100;

/** libfuse has it run without a word. */
const HINT =
  'may fusermount mount? It has to be set-user-ID root, which NoNewPrivileges= of systemd takes away, as most containers do';

/**
 * Mounts `tree` and serves it through libfuse 2, on this thread: it must be a main thread, and nothing in this process
 * may touch the mount. Throws when the transport cannot be had; `connected` rejects when mounting fails.
 */
export async function serveNative(options: NativeServeOptions): Promise<Server> {
  const obstacle = mountObstacle(options);
  if (obstacle !== undefined) throw obstacle;
  const counters = createCounters();
  const createFilesystem = await loadFactory(options.filesystem.factory);
  const filesystem = await createFilesystem(options.filesystem.data);
  const fuse = createFuse(options, new NativeOperations(filesystem, options.inodes, counters));
  const before = deviceDescriptors();
  const connected = mount(fuse, options.mountpoint);
  const ended = connected.then(() => {
    const device = deviceDescriptors().find((fd) => !before.includes(fd));
    return endOf(fuse, device);
  });
  // Whoever waits for `connected` gets this error there.
  ended.catch(() => {});
  return { connected, ended, counters: () => sumCounters([counters]) };
}

function createFuse(options: ServeOptions, operations: NativeOperations): Fuse {
  const FuseClass = loadFuseNative();
  // Its own runs `fusermount -uz` in a shell, at a time when something else may be mounted there.
  FuseClass.unmount = (_mountpoint, done) => done(null);
  const fuse = new FuseClass(options.mountpoint, operations.table(), { timeout: false });
  // It knows neither use_ino nor negative_timeout nor ro.
  fuse._fuseOptions = () => mountOptions(options);
  // Its own neither check the buffer's length nor tell the right one.
  fuse._op_getxattr = operations.getxattr.bind(operations);
  fuse._op_listxattr = operations.listxattr.bind(operations);
  return fuse;
}

function mount(fuse: Fuse, mountpoint: string): Promise<void> {
  return new Promise((resolve, reject) => {
    fuse.open((error) => {
      if (!error) return resolve();
      reject(failed(`${mountpoint} cannot be mounted by the native transport`, { hint: HINT, cause: error }));
    });
  });
}

/** Descriptors of this process on /dev/fuse. */
function deviceDescriptors(): number[] {
  return fs
    .readdirSync('/proc/self/fd')
    .map(Number)
    .filter((fd) => isDevice(fd));
}

function isDevice(fd: number): boolean {
  try {
    return fs.readlinkSync(`/proc/self/fd/${fd}`) === '/dev/fuse';
  } catch {
    return false;
  }
}

/**
 * fuse-native says nothing when its thread ends. That thread closes the descriptor once the mount is gone and the last
 * request is answered, which is exactly what we want to know.
 */
async function endOf(fuse: Fuse, device: number | undefined): Promise<void> {
  if (device === undefined) throw failed('libfuse mounted without opening /dev/fuse');
  await new Promise<void>((resolve) => {
    const timer = setInterval(() => {
      if (isDevice(device)) return;
      clearInterval(timer);
      resolve();
    }, END_POLL_MS);
  });
  // Only lets go of the event loop: see FuseClass.unmount above.
  await new Promise<void>((resolve, reject) => fuse.close((error) => (error ? reject(error) : resolve())));
}
