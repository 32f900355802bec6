import * as fs from 'node:fs';
import { failed, systemCode } from '../errors.js';
import { deviceNumber, deviceText } from '../host/device-number.js';
import { fileIdentity, usersOfFiles } from '../host/file-users.js';
import { listMounts } from '../host/mountinfo.js';

/**
 * QEMU marks that it writes to an image by a shared lock on byte 100 + 1 of the file, and that nobody else may write by one on byte
 * 200 + 1 (RAW_LOCK_PERM_BASE, RAW_LOCK_SHARED_BASE and BLK_PERM_WRITE in QEMU's block/file-posix.c). It takes bytes 100 to 163 and
 * 200 to 263 only, and the kernel joins neighbours.
 */
const WRITER_BYTE = 101;
const NO_OTHER_WRITER_BYTE = 201;
/** How many bytes there are from 100, and from 200 on. */
const PERMISSION_BYTES = 64;

/** `7: OFDLCK ADVISORY  READ -1 fe:00:2148620 101 101`; see proc_locks(5). Device numbers are hexadecimal. */
const LOCK_LINE = /^\d+: (?:OFDLCK|POSIX) +\S+ +READ +-?\d+ ([0-9a-f]+):([0-9a-f]+):(\d+) (\d+) (\d+)$/;

/** As /proc/PID/comm has it: `qemu-system-x86`, `qemu-nbd`, `qemu:mail01` where libvirt is told to name it, `kvm`. */
const QEMU_PROCESS = /^(?:qemu|kvm)/;

/** Whether a QEMU process on this host has the file open for writing. A writer on another host is not seen here. */
export async function isWrittenByQemu(file: string): Promise<boolean> {
  return (await isLocked(file, WRITER_BYTE)) || isOpenInQemu(file, 'write');
}

/** Whether a QEMU process on this host relies on nobody else writing: it has the image open, or one that lies on it. */
async function isGuardedByQemu(file: string): Promise<boolean> {
  return (await isLocked(file, NO_OTHER_WRITER_BYTE)) || isOpenInQemu(file, 'any');
}

/**
 * Looks at what QEMU processes have open where locks do not tell. A lock belongs to an inode. The same block device has another one in
 * the /dev that libvirt gives to each VM (`namespaces` in qemu.conf), and file systems like Btrfs, which give out device numbers
 * of their own, have others in /proc/locks.
 */
function isOpenInQemu(file: string, access: 'write' | 'any'): boolean {
  const stat = fs.statSync(file, { bigint: true });
  const device = deviceText(stat.dev);
  if (!stat.isBlockDevice() && listMounts().some((mount) => mount.device === device)) return false;
  return usersOfFiles([fileIdentity(stat)], access).users.some((user) => QEMU_PROCESS.test(user));
}

/** Throws if a running VM writes to a file that is to be overwritten or replaced, or relies on what it holds. */
export async function refuseIfUsedByQemu(file: string): Promise<void> {
  if (await isWrittenByQemu(file))
    throw failed(`${file} is in use by a running VM`, { hint: 'shut the VM off first: virsh shutdown' });
  if (await isGuardedByQemu(file)) {
    throw failed(`${file} is being read, by a running VM whose image lies on it or by a backup`, {
      hint: 'chunkmount list shows what backs it up; or shut that VM off',
    });
  }
}

/** How often the list of locks is read at most until it is the same twice. */
const READINGS = 20;

/**
 * The kernel gives the list out a page at a time, counts its way back to where it was, and so leaves out as many locks of the rest as
 * were given back meanwhile. A lock that is not in it is looked for until the list has been the same twice.
 */
async function isLocked(file: string, byte: number): Promise<boolean> {
  let before: string | undefined;
  for (let reading = 0; reading < READINGS; reading++) {
    const list = await listLocks();
    if (list === before) return false;
    if (isListed(list, file, byte)) return true;
    before = list;
  }
  return false;
}

/** Not in one go with other work: before it gives the list out, the kernel waits for all processors to pass a quiet point, which takes 10 to 20 ms. */
async function listLocks(): Promise<string> {
  try {
    return await fs.promises.readFile('/proc/locks', 'utf8');
  } catch (error) {
    // Of a kernel that was built without file locks.
    if (systemCode(error) === 'ENOENT') return '';
    throw error;
  }
}

function isListed(list: string, file: string, byte: number): boolean {
  const least = byte - (byte % 100);
  const { dev, ino } = fs.statSync(file, { bigint: true });
  const { major, minor } = deviceNumber(dev);
  for (const line of list.split('\n')) {
    const match = LOCK_LINE.exec(line);
    if (match === null) continue;
    const [lockMajor, lockMinor, lockInode, first, last] = match.slice(1) as [
      string,
      string,
      string,
      string,
      string,
    ];
    if (
      BigInt(lockInode) !== ino ||
      Number.parseInt(lockMajor, 16) !== major ||
      Number.parseInt(lockMinor, 16) !== minor
    )
      continue;
    if (Number(first) < least || Number(last) >= least + PERMISSION_BYTES) continue;
    if (Number(first) <= byte && byte <= Number(last)) return true;
  }
  return false;
}
