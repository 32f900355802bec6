import * as fs from 'node:fs';

export interface MountEntry {
  /** Major and minor of the mounted file system, as `0:52`. */
  readonly device: string;
  readonly mountpoint: string;
  readonly type: string;
  readonly source: string;
}

/** Octal escapes of /proc/self/mountinfo (space, tab, newline, backslash): see proc(5). */
function unescapeField(field: string): string {
  return field.replace(/\\([0-7]{3})/g, (_, digits: string) =>
    String.fromCharCode(Number.parseInt(digits, 8)),
  );
}

/** All mounts that this process sees, in the order they were made. */
export function listMounts(): MountEntry[] {
  return mountsIn('/proc/self/mountinfo');
}

function mountsIn(file: string): MountEntry[] {
  const entries: MountEntry[] = [];
  for (const line of fs.readFileSync(file, 'utf8').split('\n')) {
    // id parent major:minor root mountpoint options [optional fields] - type source super-options
    const [before, after] = line.split(' - ');
    const left = before?.split(' ') ?? [];
    const right = after?.split(' ') ?? [];
    const [, , device, , mountpoint] = left;
    const [type, source] = right;
    if (device === undefined || mountpoint === undefined || type === undefined || source === undefined)
      continue;
    entries.push({ device, mountpoint: unescapeField(mountpoint), type, source: unescapeField(source) });
  }
  return entries;
}

/** Whether what we mount is seen by part of this host's processes alone. Undefined: that may not be looked at. */
export function hasOwnMounts(): boolean | undefined {
  try {
    return fs.readlinkSync('/proc/self/ns/mnt') !== fs.readlinkSync('/proc/1/ns/mnt');
  } catch {
    return undefined;
  }
}

/** The topmost mount at exactly this path (which must be absolute and free of symbolic links), if there is one. */
export function mountAt(mountpoint: string): MountEntry | undefined {
  return listMounts().findLast((entry) => entry.mountpoint === mountpoint);
}

/** Every mountpoint of a mount that calls itself so, in the order they were made: bind mounts of it have the same source. */
export function mountpointsOf(source: string): string[] {
  return listMounts().flatMap((entry) => (entry.source === source ? [entry.mountpoint] : []));
}

/**
 * Whether another process has a mount that calls itself so. A mount namespace that was made meanwhile, as libvirt makes one for each
 * VM that it starts, has a copy of every mount, and keeps it if `/` is not a shared mount.
 */
export function isMountedForOthers(source: string): boolean {
  const seen = new Set<string>();
  for (const pid of fs.readdirSync('/proc').filter((name) => /^[0-9]+$/.test(name))) {
    try {
      const namespace = fs.readlinkSync(`/proc/${pid}/ns/mnt`);
      if (seen.has(namespace)) continue;
      if (mountsIn(`/proc/${pid}/mountinfo`).some((entry) => entry.source === source)) return true;
      // Not before: another process may have to show what one that ended meanwhile did not.
      seen.add(namespace);
    } catch {
      // It has ended, or belongs to somebody else.
    }
  }
  return false;
}
