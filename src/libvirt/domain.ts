export type DomainState =
  | 'running'
  | 'paused'
  | 'shut off'
  | 'crashed'
  | 'in shutdown'
  | 'pmsuspended'
  | 'other';

export interface BackingFile {
  readonly path: string;
  readonly format: string;
}

/** A block job that copies what the guest writes into a second image, as the live XML shows it. */
export interface Mirror {
  /** `copy` or `active-commit`. */
  readonly job: string;
  readonly path: string | undefined;
  /** Both are equal, and a pivot is possible. */
  readonly ready: boolean;
}

/** One `<disk>` of a domain, as far as we need it. */
export interface Disk {
  /** `vda`: unique in the domain. */
  readonly target: string;
  /** virtio, scsi, sata, ide, usb, fdc, … */
  readonly bus: string;
  readonly device: 'disk' | 'cdrom' | 'floppy' | 'lun';
  /** libvirt's source type. */
  readonly type: 'file' | 'block' | 'volume' | 'network' | 'dir' | 'other';
  /** File or block device; undefined for an empty drive or a source that is neither. */
  readonly path: string | undefined;
  /** Driver type: `raw`, `qcow2`, …; undefined if the XML has none. */
  readonly format: string | undefined;
  readonly readonly: boolean;
  readonly shareable: boolean;
  readonly transient: boolean;
  readonly encrypted: boolean;
  /** The disk is a part of its image only: libvirt's `<slices>`. */
  readonly sliced: boolean;
  /** Paths of what lies below `path`, nearest first, as far as the live XML lists it; undefined for what is no file or device. */
  readonly below: readonly (string | undefined)[];
  /** The same with formats; undefined unless all are files or devices and the last is known to be the last. */
  readonly backing: readonly BackingFile[] | undefined;
  readonly mirror?: Mirror | undefined;
}

export interface Domain {
  readonly name: string;
  readonly uuid: string;
  readonly state: DomainState;
  /** A QEMU process has its disks open, whatever the state is called. */
  readonly active: boolean;
  /** False: the domain is gone once it stops. */
  readonly persistent: boolean;
  readonly disks: readonly Disk[];
  /** Path of the NVRAM file of a UEFI guest. */
  readonly nvram: string | undefined;
  /** Number of the user that its QEMU runs as; undefined if libvirt does not say, as it does not while it is off. */
  readonly qemuUser: number | undefined;
}
