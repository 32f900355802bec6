import type { Disk } from '../libvirt/domain.js';
import { loadDescription, loadInactive } from '../libvirt/load-domain.js';
import type { DomainName, Virsh } from '../libvirt/virsh.js';

/** Domains asked at once. */
const PARALLEL = 8;

/** Whether a disk's chain, as far as the XML tells, has that file in it. */
export function usesFile(disk: Disk, file: string): boolean {
  return disk.path === file || disk.mirror?.path === file || disk.below.includes(file);
}

async function refers(virsh: Virsh, { uuid }: DomainName, file: string): Promise<boolean> {
  try {
    const now = await loadDescription(virsh, uuid);
    const next = now.active ? await loadInactive(virsh, uuid) : now;
    return [...now.disks, ...next.disks].some((disk) => usesFile(disk, file));
  } catch (error) {
    // Gone since it was listed: then it refers to nothing.
    if ((await virsh.list()).every((domain) => domain.uuid !== uuid)) return false;
    throw error;
  }
}

/** The first domain whose running or defined disks have that file in their chain. */
export async function domainReferringTo(virsh: Virsh, file: string): Promise<string | undefined> {
  const domains = await virsh.list();
  for (let start = 0; start < domains.length; start += PARALLEL) {
    const some = domains.slice(start, start + PARALLEL);
    const answers = await Promise.all(some.map((domain) => refers(virsh, domain, file)));
    const found = answers.indexOf(true);
    if (found >= 0) return some[found]?.name;
  }
  return undefined;
}
