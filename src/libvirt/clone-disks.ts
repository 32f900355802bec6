import type { Document, Element } from '@xmldom/xmldom';
import { failed } from '../errors.js';
import { attribute, child, children } from './xml.js';

/** An image file for one disk of a VM. */
export interface DiskImage {
  readonly target: string;
  /** Absolute. */
  readonly file: string;
  readonly format: 'raw' | 'qcow2';
  /** It is one layer of several, and for this VM alone. */
  readonly overlay: boolean;
}

export interface CloneDisksRequest {
  readonly disks: readonly DiskImage[];
  readonly exists: Exists;
}

/** Whether this host has a file or device of that absolute path. */
type Exists = (path: string) => boolean;

/** Of the image that was, and wrong for the one that is. */
const OF_THE_OLD_IMAGE = ['source', 'backingStore', 'mirror', 'auth', 'encryption'];

/** Attributes that only a whole SCSI device has, passed through to the guest. */
const OF_A_PASSED_DEVICE = ['sgio', 'rawio'];

function removeAll(parent: Element, name: string): boolean {
  const found = children(parent, name);
  for (const element of found) parent.removeChild(element);
  return found.length > 0;
}

function driverOf(document: Document, disk: Element): Element {
  const old = child(disk, 'driver');
  if (old !== undefined) return old;
  const driver = document.createElement('driver');
  driver.setAttribute('name', 'qemu');
  disk.insertBefore(driver, disk.firstChild);
  return driver;
}

function putSource(document: Document, disk: Element, place: string, path: string): Element {
  const source = document.createElement('source');
  source.setAttribute(place, path);
  disk.insertBefore(source, child(disk, 'target') ?? null);
  return source;
}

/** Puts a disk on its new image. Returns what is to be said about it. */
function useImage(document: Document, disk: Element, image: DiskImage): string[] {
  const notices: string[] = [];
  for (const name of OF_THE_OLD_IMAGE) removeAll(disk, name);
  disk.setAttribute('type', 'file');
  if (attribute(disk, 'device') === 'lun') {
    disk.setAttribute('device', 'disk');
    notices.push(`disk ${image.target} was a SCSI device of the host, and is an ordinary disk now`);
  }
  for (const name of OF_A_PASSED_DEVICE) disk.removeAttribute(name);
  driverOf(document, disk).setAttribute('type', image.format);
  // libvirt shares raw images only; and an overlay has what its base lacks for one VM alone.
  if ((image.overlay || image.format !== 'raw') && removeAll(disk, 'shareable')) {
    notices.push(`disk ${image.target} was shared with other VMs, and is this VM's own now`);
  }
  // Such a disk gets an overlay of libvirt's at each start, which would lie on ours.
  if (image.overlay) removeAll(disk, 'transient');
  putSource(document, disk, 'file', image.file);
  return notices;
}

/** Which attribute of a `<source>` is the medium, for the types of disk that have it on this host. */
const MEDIUM: Readonly<Record<string, string>> = { file: 'file', block: 'dev' };

/** Leaves the drive, with its medium if that is a file or device of this host that the guest cannot write to: a CD. */
function keepDrive(document: Document, disk: Element, target: string, exists: Exists): string[] {
  const old = child(disk, 'source');
  const place = MEDIUM[attribute(disk, 'type') ?? 'file'];
  const medium = place === undefined ? undefined : attribute(old, place);
  const floppy = attribute(disk, 'device') === 'floppy';
  for (const name of OF_THE_OLD_IMAGE) removeAll(disk, name);
  if (place !== undefined && medium?.startsWith('/') === true && !floppy && exists(medium)) {
    // Made anew: what else the old one has may lead elsewhere.
    const source = putSource(document, disk, place, medium);
    const policy = attribute(old, 'startupPolicy');
    if (policy !== undefined) source.setAttribute('startupPolicy', policy);
    return [`the guest sees ${medium} of this host in drive ${target}`];
  }
  disk.setAttribute('type', 'file');
  if (old === undefined) return [];
  const what = medium === undefined ? 'the medium' : `the medium ${medium}`;
  const why = floppy ? 'could be written to' : 'is not on this host';
  return [`${what} in drive ${target} ${why}: the drive is empty`];
}

/**
 * Puts the disks of a domain on the images given; disks without an image are taken out, drives for media stay, only CDs in them. Returns what
 * the administrator ought to know. Throws for a disk without a target, and for a target that occurs twice.
 */
export function cloneDisks(document: Document, domain: Element, request: CloneDisksRequest): string[] {
  const devices = child(domain, 'devices');
  const notices: string[] = [];
  const seen = new Set<string>();
  for (const disk of devices === undefined ? [] : children(devices, 'disk')) {
    const target = attribute(child(disk, 'target'), 'dev');
    if (target === undefined) throw failed('the domain XML has a disk without a target');
    if (seen.has(target)) throw failed(`the domain XML has two disks ${target}`);
    seen.add(target);
    const image = request.disks.find((one) => one.target === target);
    if (image !== undefined) notices.push(...useImage(document, disk, image));
    else if (['cdrom', 'floppy'].includes(attribute(disk, 'device') ?? '')) {
      notices.push(...keepDrive(document, disk, target, request.exists));
    } else {
      disk.parentNode?.removeChild(disk);
      notices.push(`disk ${target} is not in the tree, and is taken out`);
    }
  }
  for (const { target, file } of request.disks) {
    if (!seen.has(target)) notices.push(`the domain XML has no disk ${target}: ${file} belongs to no VM`);
  }
  return notices;
}
