import type { Document, Element } from '@xmldom/xmldom';
import { failed } from '../errors.js';
import { children, parseXml, rootOf } from './xml.js';

/** Of these, libvirt writes several into one parent; of all else in a `<domain>`, `<os>` or `<disk>` one: see its domaincommon.rng. */
const SEVERAL = ['sysinfo', 'seclabel', 'boot', 'initarg', 'initenv'];

function isSingle(name: string): boolean {
  return !SEVERAL.includes(name);
}

/** Throws when an element that may be there once is there twice, in whatever namespaces: libvirt does not look at those everywhere. */
function refuseTwice(parent: Element, single: (name: string) => boolean): void {
  const seen = new Set<string>();
  for (let node = parent.firstChild; node !== null; node = node.nextSibling) {
    if (node.nodeType !== node.ELEMENT_NODE) continue;
    const name = (node as Element).localName ?? node.nodeName;
    if (seen.has(name) && single(name)) {
      throw failed(`the XML of a <domain> has more than one <${name}> in its <${parent.nodeName}>`);
    }
    seen.add(name);
  }
}

/**
 * Parses the definition of a VM that came with a backup. Of two elements in the place of one, libvirt merges some and takes one
 * of others, and what we looked at would not be all that the VM gets. So that is damage: throws for it, and as parseXml does.
 */
export function parseDefinition(xml: string): Document {
  const document = parseXml(xml, 'domain');
  const domain = rootOf(document);
  refuseTwice(domain, isSingle);
  for (const os of children(domain, 'os')) refuseTwice(os, isSingle);
  for (const devices of children(domain, 'devices')) {
    refuseTwice(devices, (name) => name === 'emulator');
    for (const disk of children(devices, 'disk')) refuseTwice(disk, isSingle);
  }
  return document;
}
