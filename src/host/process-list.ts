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
