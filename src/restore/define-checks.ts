import * as fs from 'node:fs';
import { failed, usage } from '../errors.js';
import type { Virsh } from '../libvirt/virsh.js';
import { domainReferringTo } from '../snapshot/references.js';

/** Throws unless nothing is at `file`, or it may be replaced: a plain file that no VM has. */
export async function checkReplaceable(virsh: Virsh, file: string, force: boolean): Promise<void> {
  const found = fs.lstatSync(file, { throwIfNoEntry: false });
  if (found === undefined) return;
  if (!force) {
    throw usage(`${file} exists`, {
      hint: 'give another --name or --storage, or replace it: --force',
    });
  }
  if (!found.isFile()) throw usage(`${file} is no plain file`, { hint: 'give another --name or --storage' });
  const user = await domainReferringTo(virsh, file);
  if (user === undefined) return;
  throw usage(`${file} belongs to the VM ${user}`, { hint: 'give another --name or --storage' });
}

const MIB = 1024 * 1024;

/** Throws when a directory has less room than `needed` bytes. */
export function checkRoom(directory: string, needed: number): void {
  const { bavail, bsize } = fs.statfsSync(directory);
  const free = bavail * bsize;
  if (needed <= free) return;
  throw failed(
    `${directory} has ${Math.floor(free / MIB)} MiB left, and up to ${Math.ceil(needed / MIB)} are needed`,
    { hint: 'make room, give another --storage, or try all the same: --force', details: { needed, free } },
  );
}
