import * as v from 'valibot';
import type { Virsh } from './virsh.js';

/** What we use of the answer to QMP's query-named-block-nodes. */
const Nodes = v.object({
  return: v.array(
    v.object({
      'node-name': v.optional(v.string()),
      'dirty-bitmaps': v.optional(v.array(v.object({ name: v.optional(v.string()) })), []),
    }),
  ),
});

const Done = v.object({ return: v.unknown() });

async function qmp(virsh: Virsh, uuid: string, execute: string, given: object): Promise<unknown> {
  const command = JSON.stringify({ execute, arguments: given });
  return JSON.parse(await virsh.call('qemu-monitor-command', ['--domain', uuid, command]));
}

/**
 * Removes dirty bitmaps of that name from the images that a running domain has open, past libvirt: for those that libvirt does not
 * know, or calls broken and cannot remove. One that is broken would keep the disk from being resized.
 */
export async function removeQemuBitmaps(virsh: Virsh, uuid: string, name: string): Promise<void> {
  const nodes = v.parse(Nodes, await qmp(virsh, uuid, 'query-named-block-nodes', { flat: true })).return;
  for (const { 'node-name': node, 'dirty-bitmaps': bitmaps } of nodes) {
    if (node === undefined || bitmaps.every((bitmap) => bitmap.name !== name)) continue;
    v.parse(Done, await qmp(virsh, uuid, 'block-dirty-bitmap-remove', { node, name }));
  }
}
