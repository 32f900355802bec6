import { DOMParser, type Document, type Element, onErrorStopParsing, XMLSerializer } from '@xmldom/xmldom';
import { failed, messageOf } from '../errors.js';

/** libvirt's own limit for a domain's XML in one message is 4 MiB: REMOTE_STRING_MAX of remote_protocol.x. */
const MAX_XML_LENGTH = 4 * 1024 * 1024;

/** Line ends of XML 1.0 only: the parser's default would change U+2028 in a file's name into a newline. */
function normalizeLineEndings(text: string): string {
  return text.replace(/\r\n?/g, '\n');
}

/**
 * Parses XML as libvirt writes it. Throws for what is too long, not well-formed or not a `<root>` element, and for a document type
 * declaration: libvirt never writes one, and without it there are no entities but the five of XML.
 */
export function parseXml(text: string, root: string): Document {
  if (text.length > MAX_XML_LENGTH)
    throw failed(`the XML of a <${root}> is longer than ${MAX_XML_LENGTH} characters`);
  if (/<!DOCTYPE/i.test(text)) throw failed(`the XML of a <${root}> has a document type declaration`);
  let document: Document;
  try {
    const parser = new DOMParser({ locator: false, normalizeLineEndings, onError: onErrorStopParsing });
    document = parser.parseFromString(text, 'text/xml');
  } catch (error) {
    throw failed(`the XML of a <${root}> is damaged: ${messageOf(error)}`, { cause: error });
  }
  if (document.documentElement?.nodeName !== root)
    throw failed(`the XML of a <${root}> has another root element`);
  return document;
}

export function serializeXml(document: Document): string {
  return new XMLSerializer().serializeToString(document);
}

export function rootOf(document: Document): Element {
  return document.documentElement!;
}

/** The child elements of that name, in order. */
export function children(parent: Element, name: string): Element[] {
  const found: Element[] = [];
  for (let node = parent.firstChild; node !== null; node = node.nextSibling) {
    if (node.nodeType === node.ELEMENT_NODE && node.nodeName === name) found.push(node as Element);
  }
  return found;
}

/** Follows child element names downwards, the first of each. */
export function child(parent: Element | undefined, ...names: string[]): Element | undefined {
  let element = parent;
  for (const name of names) element = element === undefined ? undefined : children(element, name)[0];
  return element;
}

/** An attribute's value, undefined if there is none. */
export function attribute(element: Element | undefined, name: string): string | undefined {
  return element?.getAttribute(name) ?? undefined;
}

/** The text in an element, without the white space around it; undefined if there is none. */
export function textOf(element: Element | undefined): string | undefined {
  const text = element?.textContent?.trim();
  return text === undefined || text === '' ? undefined : text;
}

/** Escapes text for an attribute or element. Throws for characters that XML 1.0 cannot hold. */
export function escapeXml(text: string): string {
  // Section 2.2 of XML 1.0: of the control characters only tab, line feed and carriage return exist.
  // biome-ignore lint/suspicious/noControlCharactersInRegex: those are what is looked for
  if (/[\u0000-\u0008\u000b\u000c\u000e-\u001f\ufffe\uffff]/.test(text)) {
    throw failed(`${JSON.stringify(text)} has characters that XML cannot hold`);
  }
  return text.replace(/[&<>'"\t\n\r]/g, (character) => `&#${character.charCodeAt(0)};`);
}
