import { checkName } from '../chunks/names.js';
import { usage } from '../errors.js';
import type { Virsh } from '../libvirt/virsh.js';

export interface NameRequest {
  /** `--name`. */
  readonly wanted: string | undefined;
  /** Taken when nothing is wanted. */
  readonly otherwise: string;
  /** Undefined: any. */
  readonly uuid: string | undefined;
}

/** The name of a VM that is to be defined. Throws a usage error when it is no name, or libvirt knows the name or UUID. */
export async function freeName(virsh: Virsh, request: NameRequest): Promise<string> {
  const name = checkName(request.wanted ?? request.otherwise);
  const domains = await virsh.list();
  if (domains.some((domain) => domain.name === name)) {
    throw usage(`there is a VM called ${name} already`, {
      hint: `give another name: --name=${name}-restored`,
    });
  }
  const other = domains.find(({ uuid }) => uuid === request.uuid);
  if (other !== undefined) {
    throw usage(`the VM ${other.name} has the UUID of the backup, ${other.uuid}`, {
      hint: 'leave out --same-identity, or undefine that VM first: virsh undefine',
    });
  }
  return name;
}
