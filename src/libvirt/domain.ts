export type DomainState = 'running' | 'paused' | 'shut off' | 'crashed' | 'in shutdown' | 'pmsuspended' | 'other';

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
  /** The backing files below `path`, nearest first, as the live XML lists them; undefined if it does not say. */
  readonly backing: readonly { readonly path: string; readonly format: string }[] | undefined;
}

export interface Domain {
  readonly name: string;
  readonly uuid: string;
  readonly state: DomainState;
  /** False: the domain is gone once it stops. */
  readonly persistent: boolean;
  readonly disks: readonly Disk[];
  /** Path of the NVRAM file of a UEFI guest. */
  readonly nvram: string | undefined;
}
