import type { Element } from '@xmldom/xmldom';
import { failed } from '../errors.js';
import type { BackingFile, Disk, Mirror } from './domain.js';
import { userNumber } from './qemu-user.js';
import { attribute, child, children, parseXml, rootOf, textOf } from './xml.js';

/** A disk whose image is a volume of a storage pool: where that lies has to be asked. */
export interface Volume {
  readonly pool: string;
  readonly volume: string;
}

/** Says where a volume lies; undefined if that is not known. */
export type VolumePaths = (volume: Volume) => string | undefined;

export interface DomainDescription {
  readonly name: string;
  readonly uuid: string;
  /** Only a running domain has an id. */
  readonly active: boolean;
  readonly disks: readonly Disk[];
  readonly nvram: string | undefined;
  /** Number of the user that its QEMU runs as; undefined if libvirt does not say, as it does not while it is off. */
  readonly qemuUser: number | undefined;
}

const UUID = /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/;

/** No chain is that long; a limit keeps hostile XML from exhausting the stack elsewhere. */
const MAX_CHAIN_LENGTH = 1000;

function oneOf<T extends string>(value: string | undefined, known: readonly T[], otherwise: T): T {
  return known.find((candidate) => candidate === value) ?? otherwise;
}

function absolute(path: string | undefined): string | undefined {
  return path?.startsWith('/') === true ? path : undefined;
}

function volumeOf(source: Element | undefined): Volume | undefined {
  const pool = attribute(source, 'pool');
  const volume = attribute(source, 'volume');
  return pool === undefined || volume === undefined ? undefined : { pool, volume };
}

/** The path in the `<source>` of a `<disk>`, `<backingStore>` or `<mirror>`, if it is a file or block device. */
function sourcePath(parent: Element, volumePath: VolumePaths): string | undefined {
  const source = child(parent, 'source');
  const volume = volumeOf(source);
  if (volume !== undefined) return absolute(volumePath(volume));
  return absolute(attribute(source, 'file') ?? attribute(source, 'dev'));
}

/** The paths below a disk, of those that are files or devices. */
function pathsBelow(disk: Element, volumePath: VolumePaths): (string | undefined)[] {
  const paths: (string | undefined)[] = [];
  let store = child(disk, 'backingStore');
  while (store !== undefined && child(store, 'source') !== undefined && paths.length < MAX_CHAIN_LENGTH) {
    paths.push(sourcePath(store, volumePath));
    store = child(store, 'backingStore');
  }
  return paths;
}

/** The layers below a disk. Undefined unless all are files or devices and the last is known to be the last. */
function backingOf(disk: Element, volumePath: VolumePaths): BackingFile[] | undefined {
  const chain: BackingFile[] = [];
  let store = child(disk, 'backingStore');
  while (store !== undefined && chain.length < MAX_CHAIN_LENGTH) {
    if (child(store, 'source') === undefined) return chain;
    const path = sourcePath(store, volumePath);
    const format = attribute(child(store, 'format'), 'type');
    if (path === undefined || format === undefined) return undefined;
    chain.push({ path, format });
    store = child(store, 'backingStore');
  }
  return undefined;
}

function mirrorOf(disk: Element, volumePath: VolumePaths): Mirror | undefined {
  const mirror = child(disk, 'mirror');
  if (mirror === undefined) return undefined;
  const ready = attribute(mirror, 'ready');
  // While libvirt pivots or aborts, `ready` says `pivot` or `abort`.
  return {
    job: attribute(mirror, 'job') ?? 'copy',
    path: sourcePath(mirror, volumePath),
    ready: ready === 'yes',
  };
}

function parseDisk(disk: Element, volumePath: VolumePaths): Disk {
  const target = attribute(child(disk, 'target'), 'dev');
  if (target === undefined) throw failed('the domain XML has a disk without a target');
  const encrypted =
    child(disk, 'encryption') !== undefined || child(disk, 'source', 'encryption') !== undefined;
  return {
    target,
    bus: attribute(child(disk, 'target'), 'bus') ?? '',
    device: oneOf(attribute(disk, 'device'), ['disk', 'cdrom', 'floppy', 'lun'], 'disk'),
    type: oneOf(attribute(disk, 'type'), ['file', 'block', 'volume', 'network', 'dir'], 'other'),
    path: sourcePath(disk, volumePath),
    format: attribute(child(disk, 'driver'), 'type'),
    readonly: child(disk, 'readonly') !== undefined,
    shareable: child(disk, 'shareable') !== undefined,
    transient: child(disk, 'transient') !== undefined,
    encrypted,
    sliced: child(disk, 'source', 'slices') !== undefined,
    below: pathsBelow(disk, volumePath),
    backing: backingOf(disk, volumePath),
    mirror: mirrorOf(disk, volumePath),
  };
}

/** The user in the label that the security driver `dac` has given a running QEMU. */
function qemuUserOf(root: Element): number | undefined {
  const label = children(root, 'seclabel').find((one) => attribute(one, 'model') === 'dac');
  const user = textOf(child(label, 'label'))?.split(':')[0];
  return user === undefined ? undefined : userNumber(user);
}

/** The pool and name of every volume that a domain's XML mentions. */
export function volumesIn(xml: string): Volume[] {
  const volumes: Volume[] = [];
  for (const source of parseXml(xml, 'domain').getElementsByTagName('source')) {
    const volume = volumeOf(source);
    if (volume !== undefined) volumes.push(volume);
  }
  return volumes;
}

/**
 * Reads a domain's XML, live or inactive. `volumePath` says where volumes of storage pools lie.
 * Throws for XML that is damaged or has no name, UUID or disk target, or the same target twice.
 */
export function parseDomainXml(xml: string, volumePath: VolumePaths = () => undefined): DomainDescription {
  const root = rootOf(parseXml(xml, 'domain'));
  const name = textOf(child(root, 'name'));
  const uuid = textOf(child(root, 'uuid'));
  if (name === undefined || uuid === undefined || !UUID.test(uuid))
    throw failed('the domain XML has no name or UUID');
  const devices = child(root, 'devices');
  const disks =
    devices === undefined ? [] : children(devices, 'disk').map((disk) => parseDisk(disk, volumePath));
  if (new Set(disks.map((disk) => disk.target)).size !== disks.length) {
    throw failed(`the XML of ${name} has two disks with the same target`);
  }
  return {
    name,
    uuid,
    qemuUser: qemuUserOf(root),
    active: attribute(root, 'id') !== undefined,
    disks,
    nvram: absolute(
      textOf(child(root, 'os', 'nvram')) ?? attribute(child(root, 'os', 'nvram', 'source'), 'file'),
    ),
  };
}
