import type { Domain } from './domain.js';
import { type DomainDescription, parseDomainXml, type Volume, volumesIn } from './domain-xml.js';
import type { Virsh } from './virsh.js';

function key({ pool, volume }: Volume): string {
  return JSON.stringify([pool, volume]);
}

/** Reads a domain's XML, asking libvirt where the volumes in it lie. One that cannot be found leaves its disk without a path. */
async function describe(virsh: Virsh, xml: string): Promise<DomainDescription> {
  const paths = new Map<string, string | undefined>();
  for (const volume of volumesIn(xml)) {
    if (!paths.has(key(volume))) paths.set(key(volume), await virsh.volumePath(volume.pool, volume.volume));
  }
  return parseDomainXml(xml, (volume) => paths.get(key(volume)));
}

/** The domain's disks as they are now; if it does not run, as they are defined. */
export async function loadDescription(virsh: Virsh, uuid: string): Promise<DomainDescription> {
  return describe(virsh, await virsh.dumpXml(uuid));
}

/** The domain with that UUID, as it runs now; if it does not run, as it is defined. */
export async function loadDomainByUuid(virsh: Virsh, uuid: string): Promise<Domain> {
  const [description, { state }, persistent] = await Promise.all([
    loadDescription(virsh, uuid),
    virsh.state(uuid),
    virsh.isPersistent(uuid),
  ]);
  return { ...description, state, persistent };
}

/** The domain of that name. Throws a usage error if there is none, and says so when libvirt cannot be reached. */
export async function loadDomain(virsh: Virsh, name: string): Promise<Domain> {
  return loadDomainByUuid(virsh, (await virsh.find(name)).uuid);
}

/** The domain's disks as they will be at its next start. */
export async function loadInactive(virsh: Virsh, uuid: string): Promise<DomainDescription> {
  return describe(virsh, await virsh.dumpXml(uuid, { inactive: true }));
}
