import { run } from '../host/exec.js';

/**
 * Unmounts a FUSE mount, as root or as the user who mounted it. `lazy` takes it away from those who still use it. Throws
 * CommandError, mostly because it is busy.
 */
export async function unmount(mountpoint: string, options: { readonly lazy?: boolean } = {}): Promise<void> {
  const lazy = options.lazy === true;
  if (process.getuid!() === 0) await run('umount', ['-i', ...(lazy ? ['-l'] : []), '--', mountpoint]);
  else await run('fusermount3', ['-u', ...(lazy ? ['-z'] : []), '--', mountpoint]);
}
