import * as path from 'node:path';
import { fileURLToPath } from 'node:url';
import type { LayoutKind } from '../chunks/layout.js';
import type { SessionTimes } from '../content-index/stable-times.js';
import type { TransportKind } from '../fuse/transport.js';
import { scriptUrl } from '../host/program-files.js';
import type { ImageSource } from '../image/sources.js';
import type { DiskTracking } from './disk-tracking.js';

export interface DaemonDisk {
  readonly target: string;
  /** Bytes. */
  readonly size: number;
  readonly chunkSize: number;
  /** The saved extent map. */
  readonly extentsFile: string;
  readonly sources: readonly ImageSource[];
  /** File of the raw view, if the image needs one. */
  readonly view: string | undefined;
  readonly tracking: DiskTracking;
}

export interface DaemonFile {
  readonly name: string;
  readonly inode: number;
  readonly path: string;
  readonly mtime: number;
  readonly mtimeNs: number;
}

/** What the mount command leaves for the daemon in `<session>/daemon.json`. Both are of the same version. */
export interface DaemonConfig {
  readonly name: string;
  readonly sessionDirectory: string;
  readonly indexDirectory: string;
  readonly transport: TransportKind;
  readonly mountpoint: string;
  readonly source: string;
  readonly directIo: boolean;
  readonly allowOther: boolean;
  /** Enlarge thick LVM snapshots that are nearly full. */
  readonly snapshotAutoextend: boolean;
  /** What the scanners may read, together, in bytes a second. */
  readonly bandwidth?: number | undefined;
  readonly uid: number;
  readonly gid: number;
  readonly layout: LayoutKind;
  /** Chunks of zeros are not in the tree. */
  readonly skipZeros: boolean;
  /** Targets of disks of which they were left out the last time, or may have been. Undefined: nothing is known of any. */
  readonly zerosSkippedBefore?: readonly string[] | undefined;
  readonly rootMtime: number;
  readonly times: SessionTimes;
  readonly files: readonly DaemonFile[];
  readonly disks: readonly DaemonDisk[];
}

/** Only the owner reads: it is the content of other people's disks. */
export const FILE_MODE = 0o400;
export const DIRECTORY_MODE = 0o500;

/** The daemon's program, and the names of its files in the session's directory. */
export const DAEMON_SCRIPT = fileURLToPath(scriptUrl('backup/daemon.js'));
export const CONFIG_NAME = 'daemon.json';
export const LOG_NAME = 'daemon.log';

/** Where the index of a disk is kept from session to session. */
export function indexFile(indexDirectory: string, target: string): string {
  return path.join(indexDirectory, `${target}.v1`);
}

/** Beside it while a session lasts, or if it died: see content-index/change-log.ts. */
export function changeLogFile(indexDirectory: string, target: string): string {
  return path.join(indexDirectory, `${target}.changes.v1`);
}
