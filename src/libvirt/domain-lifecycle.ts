import * as fs from 'node:fs';
import * as os from 'node:os';
import * as path from 'node:path';
import type { Virsh } from './virsh.js';

/** A start opens images and firmware, and waits for other jobs of libvirt. */
const CHANGE_TIMEOUT_MS = 90_000;

/** Reading the memory of a large guest from a slow disk takes long. */
const RESTORE_TIMEOUT_MS = 6 * 3_600_000;

/** virsh reads XML from files only. The file is for us alone, and gone afterwards. */
async function withXmlFile<T>(xml: string, use: (file: string) => Promise<T>): Promise<T> {
  const directory = fs.mkdtempSync(path.join(os.tmpdir(), 'chunkmount-'));
  try {
    const file = path.join(directory, 'domain.xml');
    fs.writeFileSync(file, xml, { mode: 0o600 });
    return await use(file);
  } finally {
    fs.rmSync(directory, { recursive: true, force: true });
  }
}

/**
 * Defines a domain from XML that this libvirt did not write. Unlike Virsh.define it lets elements pass that this version does not
 * know: a newer one may have written them.
 */
export async function defineForeign(virsh: Virsh, xml: string): Promise<void> {
  await withXmlFile(xml, (file) => virsh.call('define', ['--file', file], CHANGE_TIMEOUT_MS));
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
  await withXmlFile(xml, (definition) =>
    virsh.call('restore', ['--file', file, '--xml', definition, '--running'], RESTORE_TIMEOUT_MS),
  );
}

/** Begins to copy everything below a disk's image into it, and returns. */
export async function beginBlockPull(virsh: Virsh, uuid: string, target: string): Promise<void> {
  await virsh.call('blockpull', ['--domain', uuid, '--path', target], CHANGE_TIMEOUT_MS);
}
