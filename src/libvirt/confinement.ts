import type { Virsh } from './virsh.js';
import { children, parseXml, rootOf, textOf } from './xml.js';

/** What libvirt lets QEMU do on this host. */
export interface Confinement {
  /** `apparmor`, `selinux`, `dac`. */
  readonly models: readonly string[];
  /** Numbers of the user and group that QEMU runs as; undefined if libvirt does not change them. */
  readonly user: { readonly uid: number; readonly gid: number } | undefined;
}

/** `+64055:+103`: numbers with a sign, so that they are no names. */
const LABEL = /^\+([0-9]{1,10}):\+([0-9]{1,10})$/;

/** Asks libvirt. Throws CommandError when it does not answer. */
export async function confinementOf(virsh: Virsh): Promise<Confinement> {
  const root = rootOf(parseXml(await virsh.ask('capabilities', []), 'capabilities'));
  const models = children(root, 'host').flatMap((host) => children(host, 'secmodel'));
  const labels = models.flatMap((model) => children(model, 'baselabel').map((one) => textOf(one) ?? ''));
  const [, uid, gid] = labels.map((label) => LABEL.exec(label)).find((match) => match !== null) ?? [];
  return {
    models: models.flatMap((model) => children(model, 'model').map((one) => textOf(one) ?? '')),
    user: uid === undefined ? undefined : { uid: Number(uid), gid: Number(gid) },
  };
}
