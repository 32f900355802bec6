import { hasOwnMounts } from '../host/mountinfo.js';
import type { Reporter } from '../report/reporter.js';

/** Warns whose mounts only some of the host's processes see: `then` is what that means for the user. */
export function warnOfOwnMounts(mountpoints: readonly string[], then: string, reporter: Reporter): void {
  if (mountpoints.length === 0 || hasOwnMounts() !== true) return;
  for (const mountpoint of mountpoints)
    reporter.warn(
      `this runs in a mount namespace of its own (PrivateTmp= of systemd, unshare): elsewhere ${mountpoint} is an empty directory; ${then}`,
    );
}
