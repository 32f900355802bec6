import type { Virsh } from './virsh.js';

const DELETE_TIMEOUT_MS = 90_000;

/** Names of a domain's checkpoints. */
export async function listCheckpoints(virsh: Virsh, uuid: string): Promise<string[]> {
  const text = await virsh.call('checkpoint-list', ['--domain', uuid, '--name']);
  return text.split('\n').flatMap((line) => (line.trim() === '' ? [] : [line.trim()]));
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
