/** Journal kind of an overlay. */
export const OVERLAY_KIND = 'overlay';
/** Journal kind of an LVM snapshot. */
export const LVM_KIND = 'lvm-snapshot';
/** Journal kind of a clone that shares the image's blocks. */
export const REFLINK_KIND = 'reflink-clone';
/** Journal kind of a disk in a backup job, and of its scratch file. */
export const PULL_KIND = 'pull';
/** Journal kind of a backup job. */
export const PULL_JOB_KIND = 'pull-job';
/** Journal kind of a checkpoint. */
export const CHECKPOINT_KIND = 'checkpoint';

/** Snapshots that take up room while the VM writes. Here, so that the daemon can look for them without loading what makes them. */
export const WATCHED_KINDS: ReadonlySet<string> = new Set([
  OVERLAY_KIND,
  LVM_KIND,
  REFLINK_KIND,
  PULL_JOB_KIND,
]);
