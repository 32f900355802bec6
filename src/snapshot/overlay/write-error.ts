import { PAUSED_BY_IO_ERROR, type Virsh } from '../../libvirt/virsh.js';

/** Whether a guest stands still because a write to one of its disks failed. */
export async function isStoppedByWriteError(virsh: Virsh, uuid: string): Promise<boolean> {
  const { state, reason } = await virsh.state(uuid);
  return state === 'paused' && reason === PAUSED_BY_IO_ERROR;
}
