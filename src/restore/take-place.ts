import * as fs from 'node:fs';
import { failed } from '../errors.js';
import { inheritAccess } from '../host/durable.js';
import { run } from '../host/exec.js';
import { refuseIfUsedByQemu } from '../image/image-lock.js';
import type { Target } from './target.js';
import { lockTarget } from './target-lock.js';

/** Throws unless the file is still the one that was looked at when the restore began, hours ago perhaps. */
function refuseIfReplaced(now: fs.Stats, target: Extract<Target, { kind: 'file' }>): void {
  if (now.dev === target.device && now.ino === target.inode) return;
  throw failed(`${target.file} was replaced by another file while it was being restored`, {
    hint: 'see whose it is; the same command replaces it as well',
  });
}

async function replace(file: string, target: Extract<Target, { kind: 'file' }>): Promise<void> {
  // For writing, because an exclusive lock takes that on NFS.
  const fd = fs.openSync(target.file, fs.constants.O_RDWR | fs.constants.O_NOFOLLOW);
  try {
    const replaced = fs.fstatSync(fd);
    refuseIfReplaced(replaced, target);
    await lockTarget(fd, target.file);
    await refuseIfUsedByQemu(target.file);
    inheritAccess(file, replaced);
    fs.renameSync(file, target.file);
  } finally {
    fs.closeSync(fd);
  }
}

/** mv(1) of coreutils renames with RENAME_NOREPLACE, which Node.js has no call for, and says nothing when the name is taken. */
async function appear(file: string, target: string): Promise<void> {
  await run('mv', ['--no-clobber', '--no-target-directory', '--', file, target]);
  if (!fs.existsSync(file)) return;
  throw failed(`${target} has appeared while it was being restored`, {
    hint: 'see whose it is, and move it away; or replace it: --force',
  });
}

/**
 * Gives `file` the name of a target that was looked at before. What it replaces hands down its owner and mode. Throws, and changes
 * nothing, if there is another file now, another restore writes to it, or a VM has begun to use it.
 */
export async function takePlace(file: string, target: Target): Promise<void> {
  if (target.kind === 'file' && fs.existsSync(target.file)) await replace(file, target);
  else await appear(file, target.file);
}
