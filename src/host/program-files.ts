/**
 * The files of this program that are started or loaded by their path: processes, worker threads and file systems. The
 * bundle (scripts/lib/bundle.mjs) has each of them under the name that it has in the source.
 */
export const SCRIPTS = [
  'backup/daemon.js',
  'backup/dump/read-worker.js',
  'backup/dump/write-worker.js',
  'backup/scan-worker.js',
  'fuse/chunk-filesystem.js',
  'fuse/kernel/worker.js',
  'restore/image-daemon.js',
  'restore/image-filesystem.js',
  'restore/restore-worker.js',
  'restore/verify-worker.js',
] as const;

/** Where one of our scripts is. */
export function scriptUrl(script: (typeof SCRIPTS)[number]): URL {
  return new URL(`../${script}`, import.meta.url);
}

/** Where a file of our npm package is, by its path from package.json. */
export function packageFile(file: string): URL {
  return new URL(`../../${file}`, import.meta.url);
}
