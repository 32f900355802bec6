import type { ImageReference } from '../image/image-reference.js';
import type { Consistency } from '../snapshot/provider.js';

/** What is to be backed up: a VM of libvirt, or image files that belong to no VM that runs. */
export type Source =
  | {
      readonly kind: 'vm';
      readonly name: string;
      /** One of several VMs that are given one list of disks to exclude: it need not have all of them. */
      readonly amongOthers?: boolean;
    }
  | { readonly kind: 'images'; readonly name: string; readonly images: readonly ImageReference[] };

export interface FrozenSourceDisk {
  readonly target: string;
  readonly image: ImageReference;
  /** virtio, scsi, …; null for an image without a domain. */
  readonly bus: string | null;
  /** The kind of snapshot that freezes it. */
  readonly snapshot: string;
}

/** A source at one point in time. */
export interface FrozenSource {
  readonly uuid: string | null;
  readonly time: Date;
  readonly consistency: Consistency;
  readonly disks: readonly FrozenSourceDisk[];
  /** The inactive domain XML. */
  readonly xml: string | undefined;
  /** NVRAM file of a UEFI guest on this host. */
  readonly nvram: string | undefined;
  /** The guest's memory at that moment, in a file of the session. */
  readonly memory: string | undefined;
}
