import { readIfExists } from '../host/durable.js';

/** The user that the distributions' libvirt runs QEMU as: Debian, then Fedora and openSUSE. */
const QEMU_USERS = ['libvirt-qemu', 'qemu'];

/** Number of the group that QEMU runs in on this host, as far as /etc/passwd tells; undefined if there is no such user. */
export function qemuGroup(): number | undefined {
  const lines = (readIfExists('/etc/passwd') ?? '').split('\n').map((line) => line.split(':'));
  for (const user of QEMU_USERS) {
    // passwd(5): name, password, user number, group number, …
    const group = Number(lines.find(([name]) => name === user)?.[3]);
    if (Number.isInteger(group)) return group;
  }
  return undefined;
}
