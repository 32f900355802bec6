import type { Document, Element } from '@xmldom/xmldom';
import { failed } from '../errors.js';
import { attribute, child, children, parseXml, rootOf, serializeXml } from './xml.js';

/** What of a `<disk>` says which image it uses, as XML of a domain had it. */
export interface DiskSource {
  /** The disk's `type` attribute. */
  readonly type: string;
  /** The driver's `type` attribute. */
  readonly format: string | undefined;
  /** The `<source>` element as text. */
  readonly source: string;
  /** The `<backingStore>` element as text, if somebody had written one. */
  readonly backingStore: string | undefined;
}

function diskElement(document: Document, target: string): Element {
  const devices = child(rootOf(document), 'devices');
  const disks = devices === undefined ? [] : children(devices, 'disk');
  const disk = disks.find((candidate) => attribute(child(candidate, 'target'), 'dev') === target);
  if (disk === undefined) throw failed(`the domain XML has no disk ${target}`);
  return disk;
}

/** Takes the image's description out of the XML of a domain, to put it back later. */
export function diskSource(xml: string, target: string): DiskSource {
  const disk = diskElement(parseXml(xml, 'domain'), target);
  const source = child(disk, 'source');
  if (source === undefined) throw failed(`disk ${target} has no image`);
  return {
    type: attribute(disk, 'type') ?? 'file',
    format: attribute(child(disk, 'driver'), 'type'),
    source: source.toString(),
    backingStore: child(disk, 'backingStore')?.toString(),
  };
}

function replaceChild(document: Document, disk: Element, name: string, xml: string | undefined): void {
  const old = child(disk, name);
  const fresh = xml === undefined ? null : document.importNode(rootOf(parseXml(xml, name)), true);
  if (old !== undefined && fresh !== null) disk.replaceChild(fresh, old);
  else if (old !== undefined) disk.removeChild(old);
  else if (fresh !== null) disk.insertBefore(fresh, child(disk, 'target') ?? null);
}

function setFormat(document: Document, disk: Element, format: string | undefined): void {
  let driver = child(disk, 'driver');
  if (format === undefined) {
    driver?.removeAttribute('type');
    return;
  }
  if (driver === undefined) {
    driver = document.createElement('driver');
    driver.setAttribute('name', 'qemu');
    disk.insertBefore(driver, disk.firstChild);
  }
  driver.setAttribute('type', format);
}

/**
 * The XML of a domain with disk `target` on the image that `diskSource` once described; all else as it is. A backing
 * store that was not there then goes: libvirt would otherwise take it for the truth about the new image.
 */
export function withDiskSource(xml: string, target: string, wanted: DiskSource): string {
  const document = parseXml(xml, 'domain');
  const disk = diskElement(document, target);
  disk.setAttribute('type', wanted.type);
  setFormat(document, disk, wanted.format);
  replaceChild(document, disk, 'source', wanted.source);
  replaceChild(document, disk, 'backingStore', wanted.backingStore);
  return serializeXml(document);
}
