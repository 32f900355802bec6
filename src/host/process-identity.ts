import * as fs from 'node:fs';
import { failed } from '../errors.js';

/** A process, named so that a later process with the same number is not taken for it. */
export interface ProcessIdentity {
  readonly pid: number;
  /** Clock ticks after boot at which it started: field 22 of /proc/PID/stat, see proc(5). */
  readonly startTime: number;
  /** /proc/sys/kernel/random/boot_id of the boot it ran in. */
  readonly bootId: string;
}

export function bootId(): string {
  return fs.readFileSync('/proc/sys/kernel/random/boot_id', 'utf8').trim();
}

/**
 * Start time of `pid` in clock ticks, undefined if there is no such process (or it is a zombie). One whose first thread has
 * ended shows as a zombie, but its other threads still run and hold its descriptors.
 */
function startTimeOf(pid: number): number | undefined {
  let stat: string;
  try {
    stat = fs.readFileSync(`/proc/${pid}/stat`, 'latin1');
  } catch (error) {
    const code = (error as NodeJS.ErrnoException).code;
    if (code === 'ENOENT' || code === 'ESRCH') return undefined;
    throw error;
  }
  // The second field is the command in parentheses and may itself hold spaces and parentheses.
  const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
  const threads = Number(fields[17]);
  if (fields[0] === 'X' || (fields[0] === 'Z' && threads <= 1)) return undefined;
  const startTime = Number(fields[19]);
  return Number.isSafeInteger(startTime) ? startTime : undefined;
}

/** The identity of a running process; undefined if there is none with that number. */
export function identify(pid: number): ProcessIdentity | undefined {
  const startTime = startTimeOf(pid);
  return startTime === undefined ? undefined : { pid, startTime, bootId: bootId() };
}

/** Whether /proc is one of our own process namespace: in another one, our numbers are those of other processes. */
function isProcOurs(): boolean {
  try {
    return fs.readlinkSync('/proc/self') === String(process.pid);
  } catch {
    return false;
  }
}

/** Our own identity. Throws where it could be taken for somebody else's, who would be ended in our place. */
export function ownIdentity(): ProcessIdentity {
  const identity = isProcOurs() ? identify(process.pid) : undefined;
  if (identity === undefined)
    throw failed(`/proc does not show this process (${process.pid})`, {
      hint: 'mount the one of its process namespace: mount -t proc proc /proc',
    });
  return identity;
}

/** Whether that very process still runs. What cannot be found out counts as alive. */
export function isAlive(identity: ProcessIdentity): boolean {
  try {
    if (identity.bootId !== bootId()) return false;
    return startTimeOf(identity.pid) === identity.startTime;
  } catch {
    return true;
  }
}

/** Sends `signal` to that very process; does nothing if it is gone. */
export function signalProcess(identity: ProcessIdentity, signal: NodeJS.Signals): void {
  if (!isAlive(identity)) return;
  try {
    process.kill(identity.pid, signal);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ESRCH') throw error;
  }
}

/** Between two looks whether a process has ended: most end at once. */
const END_POLL_MS = { first: 1, most: 20 };

/** Waits until that very process has ended, at most `timeoutMs`. Returns whether it has. */
export async function waitForEnd(identity: ProcessIdentity, timeoutMs: number): Promise<boolean> {
  const deadline = performance.now() + timeoutMs;
  for (let pause = END_POLL_MS.first; isAlive(identity); pause = Math.min(2 * pause, END_POLL_MS.most)) {
    if (performance.now() >= deadline) return false;
    await new Promise((resolve) => setTimeout(resolve, pause));
  }
  return true;
}
