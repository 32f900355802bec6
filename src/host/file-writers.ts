import * as fs from 'node:fs';
import { systemCode } from '../errors.js';

/** A file, whatever its name. */
export interface FileIdentity {
  readonly device: bigint;
  readonly inode: bigint;
}

export interface FileWriters {
  /** `qemu-system-x86 (1234)`: each process that has one of the files open for writing, or shares memory with it. */
  readonly writers: readonly string[];
  /** Whether there are processes whose files we may not see. */
  readonly hidden: boolean;
}

/** The access modes of open(2) in `flags:` of /proc/PID/fdinfo; see proc_pid_fdinfo(5). */
const ACCESS_MODE = 0o3;

/** Address, permissions, offset, device, inode; see proc_pid_maps(5). An `s` at the end of the permissions: shared. */
const SHARED_MAPPING = /^[0-9a-f]+-[0-9a-f]+ ..[^ ]s [0-9a-f]+ [0-9a-f]+:[0-9a-f]+ ([0-9]+)/gm;

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

function isOneOf(files: readonly FileIdentity[], path: string): boolean {
  const stat = look(() => fs.statSync(path, { bigint: true }));
  return files.some(({ device, inode }) => stat?.dev === device && stat.ino === inode);
}

function hasOpen(pid: string, files: readonly FileIdentity[]): boolean {
  return (look(() => fs.readdirSync(`/proc/${pid}/fd`)) ?? []).some((fd) => {
    const link = look(() => fs.readlinkSync(`/proc/${pid}/fd/${fd}`));
    if (link === undefined || NO_FILE.test(link)) return false;
    const info = look(() => readHead(`/proc/${pid}/fdinfo/${fd}`));
    if (info === undefined) return false;
    const flags = Number.parseInt(/^flags:\s*([0-7]+)$/m.exec(info)?.[1] ?? '2', 8);
    if ((flags & ACCESS_MODE) === 0) return false;
    // Since Linux 5.14; saves a stat of each, which on a file system that hangs would hang, too.
    const inode = /^ino:\s*([0-9]+)$/m.exec(info)?.[1];
    if (inode !== undefined && !files.some((file) => String(file.inode) === inode)) return false;
    return isOneOf(files, `/proc/${pid}/fd/${fd}`);
  });
}

/** By inode number alone: a mapping's device is not told on all file systems as stat(2) tells it. */
function hasMapped(pid: string, files: readonly FileIdentity[]): boolean {
  const maps = look(() => fs.readFileSync(`/proc/${pid}/maps`, 'latin1')) ?? '';
  for (const [, inode] of maps.matchAll(SHARED_MAPPING))
    if (files.some((file) => String(file.inode) === inode)) return true;
  return false;
}

function nameOf(pid: string): string {
  return `${look(() => fs.readFileSync(`/proc/${pid}/comm`, 'utf8').trim()) ?? '?'} (${pid})`;
}

/** Who can write to the files at this moment, as far as /proc shows: processes of other process namespaces it does not. */
export function writersOf(files: readonly FileIdentity[]): FileWriters {
  const writers: string[] = [];
  let hidden = false;
  for (const pid of fs.readdirSync('/proc').filter((name) => /^[0-9]+$/.test(name))) {
    try {
      if (hasOpen(pid, files) || hasMapped(pid, files)) writers.push(nameOf(pid));
    } catch {
      hidden = true;
    }
  }
  return { writers, hidden };
}
