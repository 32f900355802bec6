import type { ImageReference } from '../image/image-reference.js';
import type { Disk, Domain } from '../libvirt/domain.js';
import type { Virsh } from '../libvirt/virsh.js';
import type { Reporter } from '../report/reporter.js';
import type { Journal } from '../session/journal.js';
import type { UndoHandlers } from '../session/undo.js';
import type { SnapshotSize } from './snapshot-size.js';

export type SnapshotKind = 'overlay' | 'lvm' | 'reflink' | 'pull' | 'none';

/** What the frozen state is worth: see the manifest's `consistency`. */
export type Consistency = 'crash' | 'filesystem' | 'memory' | 'offline';

export interface SnapshotOptions {
  readonly quiesce: 'no' | 'try' | 'require';
  /** Where overlays go; beside each image if undefined. */
  readonly overlayDirectory?: string | undefined;
  /** The guest's memory is to be saved at the same moment, to this file, which must not exist. */
  readonly memoryFile?: string | undefined;
  /** Of thick LVM snapshots; 5 GiB if undefined. */
  readonly snapshotSize?: SnapshotSize | undefined;
  /** A backup job is to make a checkpoint, and to tell what was written since an earlier one: target → its name. */
  readonly checkpoints?: { readonly since: ReadonlyMap<string, string> } | undefined;
}

export interface SnapshotRequest {
  readonly virsh: Virsh;
  readonly domain: Domain;
  /** All to be frozen at one point in time. */
  readonly disks: readonly Disk[];
  /** Unique among all sessions of this host; goes into the names of what is made. */
  readonly sessionId: string;
  readonly options: SnapshotOptions;
  readonly journal: Journal;
  readonly reporter: Reporter;
  readonly signal?: AbortSignal | undefined;
}

/** A disk as it was at the moment of the snapshot. `image` must not be written while the session lasts. */
export interface FrozenDisk {
  readonly target: string;
  readonly image: ImageReference;
}

export interface Snapshot {
  readonly time: Date;
  readonly consistency: Consistency;
  readonly disks: readonly FrozenDisk[];
}

/**
 * Freezes disks of a VM.
 *
 * Contract:
 * - `refusal` is asked first and changes nothing. It answers undefined, or a sentence that names the disk and the reason.
 * - `freeze` is called once a session. All disks show one point in time. Every change to the host is recorded in the
 *   journal before it is made (`intend`) with enough to find it again, and after it (`done`). When it throws, the
 *   caller undoes what the journal holds.
 * - `undo` has a handler for each journal kind that `freeze` uses; see UndoHandler for what those must keep. It works
 *   in another process, after a reboot, and with the VM in any state.
 * - Nothing is deleted before its data is proven to be in the base.
 */
export interface SnapshotProvider {
  readonly kind: SnapshotKind;
  refusal(
    request: Pick<SnapshotRequest, 'virsh' | 'domain' | 'signal'>,
    disk: Disk,
  ): Promise<string | undefined>;
  freeze(request: SnapshotRequest): Promise<Snapshot>;
  readonly undo: UndoHandlers;
}
