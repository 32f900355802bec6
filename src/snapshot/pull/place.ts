import * as fs from 'node:fs';
import * as path from 'node:path';
import { failed, messageOf, usage } from '../../errors.js';
import { readIfExists } from '../../host/durable.js';
import { run } from '../../host/exec.js';
import type { ProcessIdentity } from '../../host/process-identity.js';
import type { Disk } from '../../libvirt/domain.js';

/** A scratch file's file system may have this much left at least. Below, or below a tenth of its size, the job is ended. */
const FLOOR_BYTES = 256 * 2 ** 20;
const FLOOR_SHARE = 0.1;

export interface Space {
  readonly free: number;
  /** With less left, a guest that writes fast is soon hurt. */
  readonly floor: number;
}

/** The room where a scratch file lies or shall lie, in bytes. */
export function spaceFor(scratch: string): Space {
  const { bavail, blocks, bsize } = fs.statfsSync(path.dirname(scratch));
  return { free: bavail * bsize, floor: Math.min(FLOOR_BYTES, blocks * bsize * FLOOR_SHARE) };
}

/** The file that takes what the guest overwrites: beside the image, or in the directory given. */
export function scratchPath(disk: Disk, sessionId: string, directory: string | undefined): string {
  if (directory === undefined && fs.statSync(disk.path!).isBlockDevice()) {
    throw usage(
      `disk ${disk.target} is on the block device ${disk.path}, beside which there is no place for a scratch file`,
      { hint: 'say where scratch files are to go: --overlay-dir=DIR' },
    );
  }
  return path.join(directory ?? path.dirname(disk.path!), `${disk.target}.cm-${sessionId}.scratch.qcow2`);
}

/** Throws unless there is room for twice what has to stay free: a full scratch file makes the guest's own writes fail. */
export function checkScratchSpace(scratch: string): void {
  const directory = path.dirname(scratch);
  let space: Space;
  try {
    space = spaceFor(scratch);
  } catch (error) {
    throw failed(`no scratch file can be made in ${directory}: ${messageOf(error)}`, {
      hint: 'make the directory, or name another one: --overlay-dir=DIR',
      cause: error,
    });
  }
  if (space.free >= 2 * space.floor) return;
  throw failed(`${directory} has only ${Math.floor(space.free / 2 ** 20)} MiB left for a scratch file`, {
    hint: `make room there (${Math.ceil((2 * space.floor) / 2 ** 20)} MiB at least, and what the guest overwrites during the backup), or use --overlay-dir=DIR`,
    details: { directory, free: space.free },
  });
}

/** Makes an empty qcow2 image of the file, which stays the same file. */
export async function formatScratch(scratch: string, size: number, signal?: AbortSignal): Promise<void> {
  await run('qemu-img', ['create', '-q', '-f', 'qcow2', scratch, String(size)], { signal });
}

/**
 * Where a session's socket lies: not in its own directory, where QEMU's user gets nowhere, and which can be too deep for the path of
 * a socket (108 bytes, see unix(7)).
 */
export function socketDirectory(sessionId: string): string {
  const user = process.geteuid!();
  const base = user === 0 ? '/run' : (process.env.XDG_RUNTIME_DIR ?? `/run/user/${user}`);
  return path.join(base, 'chunkmount', sessionId);
}

/** The user and group that a process acts as: fields of /proc/PID/status, see proc_pid_status(5). */
function ownerOf({ pid }: ProcessIdentity): { uid: number; gid: number } {
  const text = readIfExists(`/proc/${pid}/status`) ?? '';
  const id = (name: string) => Number(new RegExp(`^${name}:\\s+\\d+\\s+(\\d+)`, 'm').exec(text)?.[1]);
  const owner = { uid: id('Uid'), gid: id('Gid') };
  if (Number.isInteger(owner.uid) && Number.isInteger(owner.gid)) return owner;
  throw failed(`the QEMU process ${pid} ended`, { hint: 'does the VM still run?' });
}

/** Makes the directory, in which for now only QEMU's user can make a socket or reach it. */
export function makeSocketDirectory(directory: string, qemu: ProcessIdentity): void {
  const base = path.dirname(directory);
  fs.mkdirSync(base, { recursive: true, mode: 0o711 });
  const { uid, mode } = fs.lstatSync(base);
  if (uid !== process.geteuid!() || (mode & 0o022) !== 0)
    throw failed(`${base} can be written by others`, { hint: `remove it: rmdir ${base}` });
  // The umask may have kept QEMU's user out, and that of an earlier session, too.
  if ((mode & 0o111) !== 0o111) fs.chmodSync(base, 0o711);
  fs.mkdirSync(directory, { mode: 0o700 });
  const owner = ownerOf(qemu);
  if (owner.uid !== uid) fs.chownSync(directory, owner.uid, owner.gid);
}

/** From here on only we reach the socket: who connects reads the disk. Throws unless it is one. */
export function closeSocketDirectory(directory: string, socket: string): void {
  if (fs.lstatSync(directory).uid !== process.geteuid!())
    fs.chownSync(directory, process.geteuid!(), process.getegid!());
  if (!fs.lstatSync(socket).isSocket()) throw failed(`${socket} is no socket: QEMU did not make it`);
}

/** Name of a file beside the socket, in which it is told why a job was ended before its session. */
const REASON_NAME = 'ended';

export function noteEnd(directory: string, sentence: string): void {
  fs.writeFileSync(path.join(directory, REASON_NAME), sentence, { mode: 0o600 });
}

export function readEnd(directory: string): string | undefined {
  return readIfExists(path.join(directory, REASON_NAME));
}

/** Removes the directory and what we and QEMU put there. */
export function removeSocketDirectory(directory: string, socket: string): void {
  if (fs.lstatSync(directory, { throwIfNoEntry: false }) === undefined) return;
  for (const file of [socket, path.join(directory, REASON_NAME)]) fs.rmSync(file, { force: true });
  fs.rmdirSync(directory);
}
