import { escapeXml } from '../libvirt/xml.js';

export interface SnapshotPlan {
  readonly name: string;
  /** All disks of the domain. */
  readonly targets: readonly string[];
  /** Targets that are to be frozen, with the files that take over. */
  readonly overlays: ReadonlyMap<string, string>;
  /** Where the guest's memory goes. */
  readonly memoryFile?: string | undefined;
}

/**
 * XML for a snapshot that names every disk of the domain: what libvirt is not told it decides itself, and it includes
 * floppies.
 */
export function snapshotXml({ name, targets, overlays, memoryFile }: SnapshotPlan): string {
  const disks = targets.map((target) => {
    const overlay = overlays.get(target);
    if (overlay === undefined) return `<disk name='${escapeXml(target)}' snapshot='no'/>`;
    const source = `<driver type='qcow2'/><source file='${escapeXml(overlay)}'/>`;
    return `<disk name='${escapeXml(target)}' snapshot='external' type='file'>${source}</disk>`;
  });
  const memory =
    memoryFile === undefined ? '' : `<memory snapshot='external' file='${escapeXml(memoryFile)}'/>`;
  return `<domainsnapshot><name>${escapeXml(name)}</name>${memory}<disks>${disks.join('')}</disks></domainsnapshot>\n`;
}
