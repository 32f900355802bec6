import { type CloneRequest, cloneXml } from '../../src/libvirt/clone-xml.js';
import { parseXml, rootOf } from '../../src/libvirt/xml.js';

export const OLD_UUID = 'c7a5fdbd-edaf-9455-926a-d65c16db1809';
export const NEW_UUID = '11111111-2222-4333-8444-555555555555';

/** A definition as a backup may have it. */
export function domain(devices: string, more = '', attributes = ''): string {
  return `<domain type='kvm'${attributes}>
  <name>mail01</name>
  <uuid>${OLD_UUID}</uuid>
  <memory unit='KiB'>1048576</memory>
  ${more}
  <devices>${devices}</devices>
</domain>`;
}

export const DEFAULTS: CloneRequest = {
  name: 'copy',
  identity: { kind: 'new', uuid: NEW_UUID },
  disks: [],
  nvram: undefined,
  network: true,
  exists: () => false,
};

/** A clone, of which a request is the defaults but for what is given. */
export function clone(xml: string, request: Partial<CloneRequest> = {}) {
  const { xml: result, notices } = cloneXml(xml, { ...DEFAULTS, ...request });
  return { root: rootOf(parseXml(result, 'domain')), notices, xml: result };
}

export const image = (target: string, format: 'raw' | 'qcow2' = 'raw', overlay = false) => ({
  target,
  file: `/images/copy-${target}.${format}`,
  format,
  overlay,
});
