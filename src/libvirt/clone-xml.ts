import type { Document, Element } from '@xmldom/xmldom';
import { cloneDisks, type DiskImage } from './clone-disks.js';
import { parseDefinition } from './definition.js';
import { hostReach } from './host-reach.js';
import { attribute, child, children, rootOf, serializeXml, textOf } from './xml.js';

/** Who the VM is to be. `new`: with the UUID given, and MAC addresses that libvirt makes up. */
export type CloneIdentity = { readonly kind: 'same' } | { readonly kind: 'new'; readonly uuid: string };

export interface CloneRequest {
  readonly name: string;
  readonly identity: CloneIdentity;
  /** The images of the disks that there are; all others are taken out. */
  readonly disks: readonly DiskImage[];
  /** Path of the NVRAM; undefined if there is none, and libvirt is to make one if the VM needs it. */
  readonly nvram: string | undefined;
  /** Whether the network cables are plugged in. */
  readonly network: boolean;
  /** Whether this host has a file, device or program of that absolute path. */
  readonly exists: (path: string) => boolean;
}

export interface Clone {
  readonly xml: string;
  /** What the administrator ought to know about the VM: one clause each. */
  readonly notices: readonly string[];
}

function removeAll(parent: Element | undefined, name: string): void {
  if (parent !== undefined) for (const element of children(parent, name)) parent.removeChild(element);
}

function appended(document: Document, parent: Element, name: string): Element {
  const element = document.createElement(name);
  parent.appendChild(element);
  return element;
}

function setChildText(document: Document, parent: Element, name: string, text: string): void {
  const element = child(parent, name) ?? parent.insertBefore(document.createElement(name), parent.firstChild);
  element.textContent = text;
}

function devicesOf(domain: Element, ...names: string[]): Element[] {
  const devices = child(domain, 'devices');
  return devices === undefined ? [] : names.flatMap((name) => children(devices, name));
}

/** libvirt refuses a UUID in the SMBIOS tables that is not the VM's. */
function removeSmbiosUuid(domain: Element): void {
  for (const sysinfo of children(domain, 'sysinfo')) {
    for (const table of children(sysinfo, 'system')) {
      for (const entry of children(table, 'entry')) {
        if (attribute(entry, 'name') === 'uuid') table.removeChild(entry);
      }
    }
  }
}

/** Makes a second VM of one that may be running beside it: nothing that may exist only once stays. Returns what is to be said about it. */
function makeNew(document: Document, domain: Element, uuid: string): string[] {
  setChildText(document, domain, 'uuid', uuid);
  removeSmbiosUuid(domain);
  // Empty: libvirt makes one, and the guest learns that it is a copy.
  for (const id of children(domain, 'genid')) id.textContent = '';
  for (const card of devicesOf(domain, 'interface')) {
    for (const name of ['mac', 'target']) removeAll(card, name);
    for (const port of children(card, 'virtualport')) {
      for (const parameters of children(port, 'parameters')) parameters.removeAttribute('interfaceid');
    }
  }
  for (const display of devicesOf(domain, 'graphics')) freePort(display);
  for (const socket of devicesOf(domain, 'vsock')) {
    for (const id of children(socket, 'cid')) {
      id.removeAttribute('address');
      id.setAttribute('auto', 'yes');
    }
  }
  const cards = devicesOf(domain, 'interface').flatMap((card) => freeCardSocket(card, uuid));
  return [...cards, ...devicesOf(domain, ...WITH_SOCKETS).flatMap(freeSocket)];
}

function freePort(display: Element): void {
  if (display.hasAttribute('port')) {
    display.setAttribute('port', '-1');
    display.setAttribute('autoport', 'yes');
  }
  display.removeAttribute('tlsPort');
  display.removeAttribute('websocket');
  for (const place of [display, ...children(display, 'listen')]) place.removeAttribute('socket');
}

/** Devices for characters whose other end may be a socket. */
const WITH_SOCKETS = ['serial', 'parallel', 'console', 'channel'];

/** QEMU and libvirt remove a socket that another VM has made, and make their own: that VM could not be reached by it any more. */
function freeSocket(device: Element): string[] {
  if (attribute(device, 'type') !== 'unix') return [];
  const source = child(device, 'source');
  const named = attribute(child(device, 'target'), 'name') !== undefined;
  if (named || attribute(source, 'mode') === 'bind') removeAll(device, 'source');
  // For a socket with such a target libvirt makes a path of its own.
  if (named || attribute(source, 'mode') !== 'bind') return [];
  device.setAttribute('type', 'pty');
  const path = attribute(source, 'path') ?? 'of its own';
  return [`a ${device.nodeName} device had the socket ${path}, and has a terminal of this host (pty) now`];
}

/** As a character device's, where it is QEMU that makes the socket of a vhost-user card; such a card cannot be without. */
function freeCardSocket(card: Element, uuid: string): string[] {
  const source = child(card, 'source');
  const path = attribute(source, 'path');
  if (attribute(card, 'type') !== 'vhostuser' || attribute(source, 'mode') !== 'server' || !path) return [];
  const other = `${path}.${uuid.slice(0, 8)}`;
  source!.setAttribute('path', other);
  return [`a network card had the socket ${path}, and has ${other} now`];
}

function unplug(document: Document, domain: Element): void {
  for (const card of devicesOf(domain, 'interface')) {
    removeAll(card, 'link');
    appended(document, card, 'link').setAttribute('state', 'down');
  }
}

/** Returns what is to be said about it. */
function setNvram(document: Document, domain: Element, request: CloneRequest): string[] {
  const os = child(domain, 'os');
  const old = child(os, 'nvram');
  if (os === undefined) return [];
  if (request.nvram !== undefined) {
    const nvram = old ?? appended(document, os, 'nvram');
    nvram.removeAttribute('type');
    nvram.textContent = request.nvram;
    return [];
  }
  if (old === undefined) return [];
  const source = child(old, 'source');
  const path = source === undefined ? textOf(old) : attribute(source, 'file');
  if (request.identity.kind === 'same' && path !== undefined && request.exists(path)) {
    // Made anew: a source may name a device or host besides.
    old.removeAttribute('type');
    old.textContent = path;
    return [`its NVRAM is not in the tree: it uses ${path}, which is on this host`];
  }
  // Without a path libvirt takes one that belongs to the VM's name, and makes the file from the template.
  old.removeAttribute('type');
  old.textContent = '';
  return path === undefined
    ? []
    : [`its NVRAM ${path} is not in the tree: its firmware begins with an empty one`];
}

/**
 * The definition of a VM on other images: made of the XML of a backup, which is foreign input, for a host that may be another one.
 * Throws when the XML is damaged.
 */
export function cloneXml(xml: string, request: CloneRequest): Clone {
  const document = parseDefinition(xml);
  const domain = rootOf(document);
  domain.removeAttribute('id');
  setChildText(document, domain, 'name', request.name);
  const { identity } = request;
  const freed = identity.kind === 'new' ? makeNew(document, domain, identity.uuid) : [];
  if (!request.network) unplug(document, domain);
  const notices = [
    ...freed,
    ...cloneDisks(document, domain, request),
    ...setNvram(document, domain, request),
    ...hostReach(domain, request.exists),
  ];
  return { xml: serializeXml(document), notices };
}
