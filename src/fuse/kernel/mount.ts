import * as fs from 'node:fs';
import { failed, messageOf, systemCode } from '../../errors.js';
import { run } from '../../host/exec.js';
import { mountAt } from '../../host/mountinfo.js';
import { MAX_READ } from '../wire/init.js';

const DEVICE = '/dev/fuse';

/**
 * What follows `fuse.` in the type that mountinfo has of our mounts. An option, because mount(8) of util-linux 2.41, which calls
 * fsopen(2), passes on only what comes before the dot of a type.
 */
const SUBTYPE = 'chunkmount';

/** KiB that the kernel reads ahead on our mount: one READ for a whole chunk of up to this size. */
const READ_AHEAD_KB = { least: 256, most: 1024 };

/** Opens /dev/fuse. The descriptor becomes a connection when it is given to `mountDevice`. */
export function openDevice(): number {
  try {
    return fs.openSync(DEVICE, 'r+');
  } catch (error) {
    throw failed(`${DEVICE} cannot be opened: ${messageOf(error)}`, {
      hint:
        systemCode(error) === 'ENOENT'
          ? 'load the module: modprobe fuse'
          : 'run as root, or with --transport=native where /dev/fuse is open to users',
      cause: error,
    });
  }
}

export interface MountOptions {
  readonly mountpoint: string;
  /** See ServeOptions. */
  readonly source: string;
  readonly allowOther: boolean;
  readonly signal?: AbortSignal | undefined;
}

/** Mounts an open /dev/fuse (needs root). Requests wait until somebody serves the descriptor. */
export async function mountDevice(fd: number, options: MountOptions): Promise<void> {
  // fd=3: the first descriptor after stderr is the one that mount(8) gets from us. The others are those that fs/fuse/inode.c requires.
  const flags = ['fd=3', 'rootmode=40000', `user_id=${process.getuid!()}`, `group_id=${process.getgid!()}`];
  flags.push(
    `subtype=${SUBTYPE}`,
    'ro',
    'nosuid',
    'nodev',
    'noexec',
    'default_permissions',
    `max_read=${MAX_READ}`,
  );
  if (options.allowOther) flags.push('allow_other');
  await run('mount', ['-i', '-t', 'fuse', '-o', flags.join(','), options.source, options.mountpoint], {
    descriptors: [fd],
    timeoutMs: 20_000,
    signal: options.signal,
  });
}

/** Sets the read-ahead of this mount alone. Only a matter of speed: what goes wrong is ignored. */
export function raiseReadAhead(mountpoint: string, bytes: number): void {
  const mount = mountAt(mountpoint);
  if (mount === undefined) return;
  const wanted = Math.min(Math.max(bytes / 1024, READ_AHEAD_KB.least), READ_AHEAD_KB.most);
  try {
    fs.writeFileSync(`/sys/class/bdi/${mount.device}/read_ahead_kb`, String(wanted));
  } catch {
    // Not root, or no sysfs.
  }
}
