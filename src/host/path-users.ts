import * as fs from 'node:fs';

/** Numbers of all processes that /proc shows. */
function processNumbers(): number[] {
  return fs
    .readdirSync('/proc')
    .filter((name) => /^[0-9]+$/.test(name))
    .map(Number);
}

/** Runs `look`, which reads /proc of a process that may end meanwhile or belong to somebody else. */
function attempt<T>(look: () => T): T | undefined {
  try {
    return look();
  } catch {
    return undefined;
  }
}

export interface PathUser {
  readonly pid: number;
  readonly command: string;
}

/** Processes that have `directory` or something below it open, or as working directory: who keeps a mount busy. */
export function usersOf(directory: string): PathUser[] {
  const inside = (target: string) => target === directory || target.startsWith(`${directory}/`);
  const users: PathUser[] = [];
  for (const pid of processNumbers()) {
    const links = ['cwd', 'root'].map((name) => `/proc/${pid}/${name}`);
    const descriptors = attempt(() => fs.readdirSync(`/proc/${pid}/fd`)) ?? [];
    links.push(...descriptors.map((fd) => `/proc/${pid}/fd/${fd}`));
    if (!links.some((link) => inside(attempt(() => fs.readlinkSync(link)) ?? ''))) continue;
    users.push({ pid, command: attempt(() => fs.readFileSync(`/proc/${pid}/comm`, 'utf8').trim()) ?? '?' });
  }
  return users;
}
