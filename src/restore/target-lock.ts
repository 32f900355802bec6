import { ChunkmountError } from '../errors.js';
import { run } from '../host/exec.js';

/** Told to flock(1) as the exit code for "somebody else has it"; EX_TEMPFAIL of sysexits.h. */
const FLOCK_CONFLICT_EXIT_CODE = 75;

/** How long udev may take to look at a block device, during which it holds the same lock (systemd's BLOCK_DEVICE_LOCKING). */
const PROBING_SECONDS = 5;

export function lockedByAnother(target: string): ChunkmountError {
  return new ChunkmountError('locked', `another command is restoring to ${target}`, {
    hint: 'wait until it has ended',
  });
}

/**
 * Locks an open file against other restores: until `fd` is closed, or our process has ended, however it ends. flock(2) belongs to the
 * open file, which flock(1) shares with us. Throws kind `locked` if another process has it.
 */
export async function lockTarget(fd: number, target: string, { device = false } = {}): Promise<void> {
  const wait = device ? ['-w', String(PROBING_SECONDS)] : ['-n'];
  const args = ['-x', ...wait, '-E', String(FLOCK_CONFLICT_EXIT_CODE), '3'];
  const { exitCode } = await run('flock', args, { descriptors: [fd], accept: [FLOCK_CONFLICT_EXIT_CODE] });
  if (exitCode !== 0) throw lockedByAnother(target);
}
