/** Journal kind of an overlay. */
export const OVERLAY_KIND = 'overlay';
/** Journal kind of an LVM snapshot. */
export const LVM_KIND = 'lvm-snapshot';
/** Journal kind of a clone that shares the image's blocks. */
export const REFLINK_KIND = 'reflink-clone';

/** Snapshots that take up room while the VM writes. Here, so that the daemon can look for them without loading what makes them. */
export const WATCHED_KINDS: ReadonlySet<string> = new Set([OVERLAY_KIND, LVM_KIND, REFLINK_KIND]);
