import { randomBytes } from 'node:crypto';
import * as fs from 'node:fs';
import * as path from 'node:path';
import { failed, messageOf, usage } from '../errors.js';
import { cloneXml } from '../libvirt/clone-xml.js';
import { restoreMemory, savedXml } from '../libvirt/domain-lifecycle.js';
import type { Virsh } from '../libvirt/virsh.js';
import type { RestoreContext } from './restore-request.js';
import type { Tree } from './tree.js';
import { checkExtra, copyExtra, extraOf } from './tree-extra.js';
import type { VmPlan } from './vm-plan.js';

/** Throws unless the VM can go on as who it was. `name`: the one that the user wants. */
export function checkResumable(tree: Tree, name: string | undefined): void {
  const state = extraOf(tree, 'state');
  if (state === undefined) {
    throw usage(`${tree.root} has no memory of the VM to resume`, {
      hint: 'start it instead: --start (a backup has the memory if it was made with --state)',
    });
  }
  if (name !== undefined && name !== tree.manifest.name) {
    throw usage(`a VM that is resumed cannot be renamed to ${name}`, {
      hint: 'its memory belongs to the name: leave out --name, or --resume',
    });
  }
  checkExtra(tree, state);
}

export interface ResumeRequest extends RestoreContext {
  readonly tree: Tree;
  readonly plan: VmPlan;
  readonly virsh: Virsh;
}

/**
 * Continues the VM where it was when it was backed up: with its memory, on its restored disks. libvirt gets a copy of the memory's
 * file, because it changes the owner of what it is given, and a backup stays as it is.
 */
export async function resumeMemory({ tree, plan, virsh, reporter, signal }: ResumeRequest): Promise<void> {
  const extra = extraOf(tree, 'state')!;
  const copy = path.join(plan.storage, `.${plan.name}.${randomBytes(6).toString('hex')}.state`);
  const progress = reporter.progress(`copying the memory of ${plan.name}`, extra.size);
  try {
    const fd = fs.openSync(copy, 'wx', 0o600);
    try {
      await copyExtra(tree, extra, fd, { signal, onBytes: (amount) => progress.advance(amount) });
    } finally {
      fs.closeSync(fd);
      progress.end();
    }
    // What runs had to be described as it was when it was saved: its addresses, for one.
    const { xml, notices } = cloneXml(await savedXml(virsh, copy), plan.clone);
    // Nothing makes sure that it says the same as the domain XML beside it.
    for (const notice of notices) {
      if (!plan.notices.includes(notice)) reporter.notice(`${plan.name}: ${notice}`);
    }
    await restoreMemory(virsh, copy, xml);
  } catch (error) {
    throw failed(`${plan.name} is restored and defined, but its memory is not: ${messageOf(error)}`, {
      hint: `to start it without, as after a power cut: virsh start ${plan.name}`,
      cause: error,
    });
  } finally {
    fs.rmSync(copy, { force: true });
  }
}
