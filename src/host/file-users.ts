import * as fs from 'node:fs';
import { systemCode } from '../errors.js';

/** A file or block device, whatever its name: there can be several nodes of one device, each with an inode of its own. */
export interface FileIdentity {
  /** Of the file system that it is on; a block device's own. */
  readonly device: bigint;
  readonly inode: bigint | 'block';
}

/** What is looked for: processes that can write to a file, or those that have it open at all. */
type Access = 'write' | 'any';

export interface FileUsers {
  /** `qemu-system-x86 (1234)`: each process that has one of the files open so, or shares memory with it. */
  readonly users: readonly string[];
  /** Whether there are processes whose files we may not see. */
  readonly hidden: boolean;
}

/** The access modes of open(2) in `flags:` of /proc/PID/fdinfo; see proc_pid_fdinfo(5). */
const ACCESS_MODE = 0o3;

/** Address, permissions, offset, device, inode; see proc_pid_maps(5). An `s` at the end of the permissions: shared. */
const SHARED_MAPPING = /^0*([0-9a-f]+)-0*([0-9a-f]+) ..[^ ]s [0-9a-f]+ [0-9a-f]+:[0-9a-f]+ ([0-9]+)/gm;

/** What /proc/PID/fd says of descriptors that are no files: `socket:[1234]`, `anon_inode:[eventpoll]`; see proc_pid_fd(5). */
const NO_FILE = /^[a-z_]+:/;

/** /proc/PID/fdinfo begins with position, flags, mount and inode: much less than this. */
const head = Buffer.allocUnsafeSlow(512);

/** The first bytes of a file. A host has ten thousands of descriptors, and readFileSync takes three times as long. */
function readHead(path: string): string {
  const fd = fs.openSync(path, 'r');
  try {
    return head.toString('latin1', 0, fs.readSync(fd, head));
  } finally {
    fs.closeSync(fd);
  }
}

/** Undefined: it is gone. */
function look<T>(work: () => T): T | undefined {
  try {
    return work();
  } catch (error) {
    if (['ENOENT', 'ESRCH'].includes(systemCode(error) ?? '')) return undefined;
    throw error;
  }
}

export function fileIdentity(stat: fs.BigIntStats): FileIdentity {
  return stat.isBlockDevice() ? { device: stat.rdev, inode: 'block' } : { device: stat.dev, inode: stat.ino };
}

/** Throws if it is gone, or may not be looked at. */
function isOneOf(files: readonly FileIdentity[], path: string): boolean {
  const found = fileIdentity(fs.statSync(path, { bigint: true }));
  return files.some(({ device, inode }) => found.device === device && found.inode === inode);
}

function hasOpen(pid: string, files: readonly FileIdentity[], access: Access): boolean {
  return (look(() => fs.readdirSync(`/proc/${pid}/fd`)) ?? []).some((fd) => {
    const link = look(() => fs.readlinkSync(`/proc/${pid}/fd/${fd}`));
    if (link === undefined || NO_FILE.test(link)) return false;
    const info = look(() => readHead(`/proc/${pid}/fdinfo/${fd}`));
    if (info === undefined) return false;
    const flags = Number.parseInt(/^flags:\s*([0-7]+)$/m.exec(info)?.[1] ?? '2', 8);
    if (access === 'write' && (flags & ACCESS_MODE) === 0) return false;
    // Since Linux 5.14; saves a stat of each, which on a file system that hangs would hang, too.
    const inode = /^ino:\s*([0-9]+)$/m.exec(info)?.[1];
    const mayBe = (file: FileIdentity) => file.inode === 'block' || String(file.inode) === inode;
    if (inode !== undefined && !files.some(mayBe)) return false;
    return look(() => isOneOf(files, `/proc/${pid}/fd/${fd}`)) ?? false;
  });
}

/**
 * The device in a line of /proc/PID/maps is not on all file systems (btrfs) the one that stat(2) tells, and each of them in memory has
 * the same small inode numbers. So what has the inode number is looked at itself; see proc_pid_map_files(5).
 */
function hasMapped(pid: string, files: readonly FileIdentity[]): boolean {
  const maps = look(() => fs.readFileSync(`/proc/${pid}/maps`, 'latin1')) ?? '';
  for (const [, start, end, inode] of maps.matchAll(SHARED_MAPPING)) {
    if (!files.some((file) => String(file.inode) === inode)) continue;
    try {
      if (isOneOf(files, `/proc/${pid}/map_files/${start}-${end}`)) return true;
    } catch {
      // That takes more rights than the list; and a mapping may have been cut in two meanwhile.
      return true;
    }
  }
  return false;
}

function nameOf(pid: string): string {
  return `${look(() => fs.readFileSync(`/proc/${pid}/comm`, 'utf8').trim()) ?? '?'} (${pid})`;
}

/**
 * Who can write to the files at this moment, or has them open, as far as /proc shows: processes of other process namespaces it does
 * not.
 */
export function usersOfFiles(files: readonly FileIdentity[], access: Access): FileUsers {
  const users: string[] = [];
  let hidden = false;
  for (const pid of fs.readdirSync('/proc').filter((name) => /^[0-9]+$/.test(name))) {
    try {
      if (hasOpen(pid, files, access) || hasMapped(pid, files)) users.push(nameOf(pid));
    } catch {
      hidden = true;
    }
  }
  return { users, hidden };
}
