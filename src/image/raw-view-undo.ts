import * as fs from 'node:fs';
import * as v from 'valibot';
import { failed, systemCode } from '../errors.js';
import { run } from '../host/exec.js';
import { mountAt } from '../host/mountinfo.js';
import { identify, type ProcessIdentity, signalProcess, waitForEnd } from '../host/process-identity.js';
import type { UndoHandler, UndoHandlers } from '../session/undo.js';
import { exportArgument, RAW_VIEW, type RawViewRecord } from './raw-view.js';

const TERM_TIMEOUT_MS = 5_000;
const KILL_TIMEOUT_MS = 10_000;

const recordSchema: v.GenericSchema<unknown, RawViewRecord> = v.object({
  mountpoint: v.string(),
  identity: v.optional(v.object({ pid: v.number(), startTime: v.number(), bootId: v.string() })),
});

function commandLine(pid: string): string[] {
  try {
    return fs.readFileSync(`/proc/${pid}/cmdline`, 'utf8').split('\0');
  } catch (error) {
    const code = systemCode(error);
    if (code === 'ENOENT' || code === 'ESRCH' || code === 'EACCES') return [];
    throw error;
  }
}

/**
 * The storage daemon of this view. It is found by its arguments, which name our mountpoint: the journal does not know its number
 * when we were killed between starting it and writing that down.
 */
function findDaemons(record: RawViewRecord): ProcessIdentity[] {
  const argument = exportArgument(record.mountpoint);
  const found: ProcessIdentity[] = record.identity === undefined ? [] : [record.identity];
  for (const pid of fs.readdirSync('/proc')) {
    if (!/^[0-9]+$/.test(pid) || !commandLine(pid).includes(argument)) continue;
    const identity = identify(Number(pid));
    if (identity !== undefined && identity.pid !== record.identity?.pid) found.push(identity);
  }
  return found;
}

async function endProcess(identity: ProcessIdentity): Promise<void> {
  signalProcess(identity, 'SIGTERM');
  if (await waitForEnd(identity, TERM_TIMEOUT_MS)) return;
  signalProcess(identity, 'SIGKILL');
  if (await waitForEnd(identity, KILL_TIMEOUT_MS)) return;
  throw failed(`the storage daemon ${identity.pid} does not end`, {
    hint: 'it is probably waiting for a disk that does not answer; see dmesg, then run the cleanup again',
  });
}

/** Its server is gone, so whoever still has the file open gets errors anyway: no reason to wait for them. */
async function unmount(mountpoint: string, signal: AbortSignal | undefined): Promise<void> {
  const mount = mountAt(mountpoint);
  if (mount === undefined) return;
  if (mount.type !== 'fuse') {
    throw failed(`a file system of type ${mount.type}, which is not ours, is mounted on ${mountpoint}`, {
      hint: `unmount it: umount ${mountpoint}`,
    });
  }
  if (process.geteuid?.() === 0) await run('umount', ['-l', '--', mountpoint], { signal });
  else await run('fusermount3', ['-u', '-z', '--', mountpoint], { signal });
}

function removeMountpoint(mountpoint: string): void {
  const found = fs.lstatSync(mountpoint, { throwIfNoEntry: false });
  if (found === undefined) return;
  if (!found.isFile() || found.size !== 0) {
    throw failed(`${mountpoint} is no longer the empty file that was made for a raw view`, {
      hint: 'look at it, and move it away',
    });
  }
  fs.rmSync(mountpoint);
}

/** Ends a raw view: storage daemon, mount, mountpoint. Keeps the contract of UndoHandler. */
const undoRawView: UndoHandler = async (entry, { signal }) => {
  const record = v.parse(recordSchema, entry.data);
  for (const identity of findDaemons(record)) await endProcess(identity);
  await unmount(record.mountpoint, signal);
  removeMountpoint(record.mountpoint);
};

export const rawViewUndo: UndoHandlers = { [RAW_VIEW]: undoRawView };
