import type { Virsh } from './virsh.js';
import { attribute, child, children, parseXml, rootOf } from './xml.js';

const DELETE_TIMEOUT_MS = 90_000;

/** Names of a domain's checkpoints. */
export async function listCheckpoints(virsh: Virsh, uuid: string): Promise<string[]> {
  const text = await virsh.ask('checkpoint-list', ['--domain', uuid, '--name']);
  return text.split('\n').flatMap((line) => (line.trim() === '' ? [] : [line.trim()]));
}

/** Bytes of a disk that the guest, which runs, wrote since a checkpoint. Undefined if that does not record this disk. */
export async function bytesSinceCheckpoint(
  virsh: Virsh,
  uuid: string,
  { name, target }: { readonly name: string; readonly target: string },
): Promise<number | undefined> {
  const text = await virsh.ask('checkpoint-dumpxml', [
    ...['--domain', uuid, '--checkpointname', name],
    ...['--no-domain', '--size'],
  ]);
  const disks = child(rootOf(parseXml(text, 'domaincheckpoint')), 'disks');
  const disk = disks && children(disks, 'disk').find((one) => attribute(one, 'name') === target);
  const size = attribute(disk, 'size') ?? '';
  return /^[0-9]{1,15}$/.test(size) ? Number(size) : undefined;
}

/**
 * Deletes a checkpoint; the older ones then cover its time, too. `metadata`: only what libvirt knows of it, not the bitmaps in the
 * images. With the bitmaps it works on running domains alone.
 */
export async function deleteCheckpoint(
  virsh: Virsh,
  uuid: string,
  name: string,
  how: { readonly metadata: boolean },
): Promise<void> {
  const args = ['--domain', uuid, '--checkpointname', name, ...(how.metadata ? ['--metadata'] : [])];
  await virsh.call('checkpoint-delete', args, DELETE_TIMEOUT_MS);
}
