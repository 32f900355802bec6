import * as v from 'valibot';
import { failed, messageOf } from '../errors.js';
import { defineForeign, destroyDomain, startDomain, undefineDomain } from '../libvirt/domain-lifecycle.js';
import { Virsh } from '../libvirt/virsh.js';
import type { Journal } from '../session/journal.js';
import type { UndoHandler } from '../session/undo.js';

/** Journal kind of a VM that was defined and started. */
export const BOOT_DOMAIN = 'boot-domain';

const Data = v.object({
  uuid: v.string(),
  connect: v.optional(v.string()),
  /** Its NVRAM is a file of ours; else, if it has one, libvirt made it. */
  ownNvram: v.boolean(),
});

export interface BootDomainRequest {
  readonly name: string;
  /** Made for this VM alone. */
  readonly uuid: string;
  readonly xml: string;
  readonly ownNvram: boolean;
  readonly virsh: Virsh;
  readonly journal: Journal;
}

/** Defines the VM and starts it. */
export async function makeBootDomain(request: BootDomainRequest): Promise<void> {
  const { name, uuid, xml, ownNvram, virsh, journal } = request;
  const { connect } = virsh.options;
  const entry = journal.intend(BOOT_DOMAIN, {
    uuid,
    ownNvram,
    ...(connect === undefined ? {} : { connect }),
  });
  try {
    await defineForeign(virsh, xml);
    await startDomain(virsh, uuid);
  } catch (error) {
    throw failed(`${name} does not start: ${messageOf(error)}`, {
      hint: 'this host may lack something that the VM had; to define it and change that: chunkmount restore TREE --define',
      cause: error,
    });
  }
  journal.done(entry);
}

async function is(virsh: Virsh, kind: 'active' | 'persistent', uuid: string): Promise<boolean> {
  return (await virsh.list(kind)).some((domain) => domain.uuid === uuid);
}

/** Ends the VM, however it runs, and forgets it. */
const undoDomain: UndoHandler = async ({ data }, { signal }) => {
  const { uuid, connect, ownNvram } = v.parse(Data, data);
  const virsh = new Virsh({ connect, signal });
  try {
    if (await is(virsh, 'active', uuid)) await destroyDomain(virsh, uuid);
  } catch (error) {
    // It may have ended by itself, just now.
    if (await is(virsh, 'active', uuid)) throw error;
  }
  if (await is(virsh, 'persistent', uuid)) await undefineDomain(virsh, uuid, { nvram: !ownNvram });
};

export const bootDomainUndo = { [BOOT_DOMAIN]: undoDomain };
