import type { LayoutKind } from '../chunks/layout.js';
import type { ZeroChunks } from '../chunks/manifest.js';
import type { TransportKind } from '../fuse/transport.js';
import type { Politeness } from '../host/politeness.js';
import type { StateDirectory } from '../session/state-directory.js';
import type { SnapshotKind } from '../snapshot/provider.js';
import type { SnapshotSize } from '../snapshot/snapshot-size.js';
import type { TrackingSettings } from './track-disk.js';

/** The options that mount, run and dump share, checked and with their defaults. */
export interface BackupSettings {
  readonly state: StateDirectory;
  /** Trees are mounted at `<backupDirectory>/<name>`. */
  readonly backupDirectory: string;
  /** libvirt's URI; its own default if undefined. */
  readonly connect: string | undefined;
  readonly exclude: readonly string[];
  readonly snapshot: 'auto' | SnapshotKind;
  readonly quiesce: 'no' | 'try' | 'require';
  readonly overlayDirectory: string | undefined;
  /** Of thick LVM snapshots; their default if undefined. */
  readonly snapshotSize: SnapshotSize | undefined;
  /** Enlarge thick LVM snapshots that are nearly full. */
  readonly snapshotAutoextend: boolean;
  /** Without a snapshot, a running VM is paused until cleanup. */
  readonly pause: boolean;
  /** Shut the VM down for the snapshot, and start it again. */
  readonly shutdown: { readonly timeoutMs: number } | undefined;
  /** Save the guest's memory, too. */
  readonly memory: boolean;
  /** Bytes. */
  readonly chunkSize: number;
  readonly layout: LayoutKind;
  readonly zeroChunks: ZeroChunks;
  readonly transport: 'auto' | TransportKind;
  readonly directIo: boolean;
  readonly allowOther: boolean;
  /** Whom the tree's files belong to. */
  readonly owner: { readonly uid: number; readonly gid: number };
  /** Refuse to begin when that many sessions are there already; 0: no limit. */
  readonly maxBackups: number;
  readonly keepLock: boolean;
  /** What is read of disks that were backed up before. */
  readonly tracking: TrackingSettings;
  /** How the daemon, and what it starts, gives way to others. */
  readonly politeness: Politeness;
  /** What its scanners may read, in bytes a second; undefined: as much as they can. */
  readonly bandwidth: number | undefined;
  /** See UndoContext. */
  readonly commitTimeoutMs: number | undefined;
}
