import * as fs from 'node:fs';
import * as path from 'node:path';
import { failed, messageOf } from '../../errors.js';
import { fsyncDirectory } from '../../host/durable.js';
import { run } from '../../host/exec.js';
import type { Disk } from '../../libvirt/domain.js';
import { type ImageIdentity, identityOfDescriptor } from '../image-identity.js';
import { isBtrfs } from './share-blocks.js';

/** As lsattr(1) shows a file that Btrfs overwrites in place. */
const NO_COW = 'C';

/** The clone of a disk's image: beside it, so that a relative name of its backing file still leads there. */
export function clonePath(disk: Disk, sessionId: string): string {
  return path.join(path.dirname(disk.path!), `${disk.target}.cm-${sessionId}.clone`);
}

/** A file that is being made. */
export interface NewClone {
  readonly fd: number;
  readonly identity: ImageIdentity;
}

/** Makes the clone's file, still empty. Throws ChunkmountError if none was made: there is one of that name already. The caller closes it. */
export function makeCloneFile(file: string): NewClone {
  let fd: number;
  try {
    fd = fs.openSync(file, 'wx', 0o600);
  } catch (error) {
    throw failed(`the clone ${file} cannot be made: ${messageOf(error)}`, {
      hint: 'can the directory of the image be written? --snapshot=overlay with --overlay-dir=DIR needs it not',
      cause: error,
    });
  }
  try {
    fsyncDirectory(path.dirname(file));
    return { fd, identity: identityOfDescriptor(fd) };
  } catch (error) {
    fs.closeSync(fd);
    throw error;
  }
}

async function hasNoCow(file: string, signal?: AbortSignal): Promise<boolean> {
  const { stdout } = await run('lsattr', ['-d', '--', file], { signal });
  return /^[A-Za-z-]*/.exec(stdout)![0].includes(NO_COW);
}

/** Btrfs shares blocks only between files that are alike in this; libvirt makes its pools there with it. */
export async function matchAttributes(image: string, clone: string, signal?: AbortSignal): Promise<void> {
  if (!isBtrfs(path.dirname(clone))) return;
  const wanted = await hasNoCow(image, signal);
  if (wanted === (await hasNoCow(clone, signal))) return;
  await run('chattr', [`${wanted ? '+' : '-'}${NO_COW}`, '--', clone], { signal });
}

/** Makes a filled clone read-only and durable. */
export function sealClone(fd: number): void {
  fs.fchmodSync(fd, 0o400);
  fs.fsyncSync(fd);
}
