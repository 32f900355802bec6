import { escapeXml } from '../libvirt/xml.js';

/**
 * XML for a snapshot of disks only that names every disk of the domain: what libvirt is not told it decides itself, and it
 * includes floppies. `overlays` maps the targets to be frozen to the files that take over.
 */
export function snapshotXml(
  name: string,
  targets: readonly string[],
  overlays: ReadonlyMap<string, string>,
): string {
  const disks = targets.map((target) => {
    const overlay = overlays.get(target);
    if (overlay === undefined) return `<disk name='${escapeXml(target)}' snapshot='no'/>`;
    const source = `<driver type='qcow2'/><source file='${escapeXml(overlay)}'/>`;
    return `<disk name='${escapeXml(target)}' snapshot='external' type='file'>${source}</disk>`;
  });
  return `<domainsnapshot><name>${escapeXml(name)}</name><disks>${disks.join('')}</disks></domainsnapshot>\n`;
}
