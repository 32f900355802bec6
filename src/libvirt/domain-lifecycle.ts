import { INPUT_FILE, type Virsh } from './virsh.js';

/** A start opens images and firmware, and waits for other jobs of libvirt. */
const CHANGE_TIMEOUT_MS = 90_000;

/** Reading the memory of a large guest from a slow disk takes long. */
const RESTORE_TIMEOUT_MS = 6 * 3_600_000;

/**
 * Defines a domain from XML that this libvirt did not write. Unlike Virsh.define it lets elements pass that this version does not
 * know: a newer one may have written them.
 */
export async function defineForeign(virsh: Virsh, xml: string): Promise<void> {
  await virsh.callWith([xml], 'define', ['--file', INPUT_FILE], CHANGE_TIMEOUT_MS);
}

export async function startDomain(virsh: Virsh, uuid: string): Promise<void> {
  await virsh.call('start', ['--domain', uuid], CHANGE_TIMEOUT_MS);
}

/** Ends it as a power cut would. */
export async function destroyDomain(virsh: Virsh, uuid: string): Promise<void> {
  await virsh.call('destroy', ['--domain', uuid], CHANGE_TIMEOUT_MS);
}

/** Forgets a domain that does not run, and what libvirt keeps for it; its NVRAM file only if told to. */
export async function undefineDomain(
  virsh: Virsh,
  uuid: string,
  options: { readonly nvram: boolean },
): Promise<void> {
  const kept = ['--managed-save', '--snapshots-metadata', '--checkpoints-metadata'];
  const nvram = options.nvram ? '--nvram' : '--keep-nvram';
  await virsh.call('undefine', ['--domain', uuid, ...kept, nvram], CHANGE_TIMEOUT_MS);
}

/** The definition inside a file of a guest's memory, with secrets, as `restoreMemory` wants it back. */
export async function savedXml(virsh: Virsh, file: string): Promise<string> {
  return virsh.call('save-image-dumpxml', ['--file', file, '--security-info']);
}

/** Continues a guest from a file of its memory, on the disks that `xml` names. */
export async function restoreMemory(virsh: Virsh, file: string, xml: string): Promise<void> {
  const args = ['--file', file, '--xml', INPUT_FILE, '--running'];
  await virsh.callWith([xml], 'restore', args, RESTORE_TIMEOUT_MS);
}

/** Begins to copy everything below a disk's image into it, and returns. */
export async function beginBlockPull(virsh: Virsh, uuid: string, target: string): Promise<void> {
  await virsh.call('blockpull', ['--domain', uuid, '--path', target], CHANGE_TIMEOUT_MS);
}
