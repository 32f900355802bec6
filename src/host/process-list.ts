import * as fs from 'node:fs';
import { identify, type ProcessIdentity } from './process-identity.js';

function commandLine(pid: number): string[] {
  try {
    return fs.readFileSync(`/proc/${pid}/cmdline`, 'utf8').split('\0').slice(0, -1);
  } catch {
    // It ended since it was listed, or is somebody else's on a host that hides such processes.
    return [];
  }
}

/** The running processes whose arguments (the program's name included) satisfy `matches`. */
export function findProcesses(matches: (argv: readonly string[]) => boolean): ProcessIdentity[] {
  const found: ProcessIdentity[] = [];
  for (const name of fs.readdirSync('/proc')) {
    const pid = Number(name);
    if (!Number.isInteger(pid) || !matches(commandLine(pid))) continue;
    const identity = identify(pid);
    if (identity !== undefined) found.push(identity);
  }
  return found;
}

/**
 * Number of the user that a process runs as. Undefined if it has ended, or is not wholly that user's: one that set-user-ID made root's has
 * arguments that somebody else gave it. The owner of /proc/PID would not do: of a process that must not be dumped that is root.
 */
export function userOf(pid: number): number | undefined {
  let status: string;
  try {
    status = fs.readFileSync(`/proc/${pid}/status`, 'latin1');
  } catch {
    return undefined;
  }
  // Real, effective, saved and file system's, see proc(5).
  const users = /^Uid:\t(.*)$/m.exec(status)?.[1]?.split('\t') ?? [];
  return users.length > 0 && users.every((user) => user === users[0]) ? Number(users[0]) : undefined;
}
