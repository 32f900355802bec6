import * as fs from 'node:fs';
import { readIfExists } from '../host/durable.js';

/**
 * QEMU marks that it writes to an image by a shared lock on byte 100 + 1 of the file (RAW_LOCK_PERM_BASE and
 * BLK_PERM_WRITE in QEMU's block/file-posix.c). It takes bytes 100 to 163 only, and the kernel joins neighbours.
 */
const WRITER_BYTE = 101;
const FIRST_PERMISSION_BYTE = 100;
const LAST_PERMISSION_BYTE = 163;

/** `7: OFDLCK ADVISORY  READ -1 fe:00:2148620 101 101`; see proc_locks(5). Device numbers are hexadecimal. */
const LOCK_LINE = /^\d+: (?:OFDLCK|POSIX) +\S+ +READ +-?\d+ ([0-9a-f]+):([0-9a-f]+):(\d+) (\d+) (\d+)$/;

/** Splits st_dev as the C library's gnu_dev_major and gnu_dev_minor do. */
function deviceNumbers(device: bigint): [bigint, bigint] {
  const major = ((device >> 8n) & 0xfffn) | ((device >> 32n) & ~0xfffn);
  const minor = (device & 0xffn) | ((device >> 12n) & ~0xffn);
  return [major, minor];
}

/**
 * Whether a QEMU process on this host has the file open for writing. A writer on another host, or a file on btrfs (whose device
 * numbers differ from those in /proc/locks), is not seen here; QEMU itself refuses to open most of these.
 */
export function isWrittenByQemu(file: string): boolean {
  const { dev, ino } = fs.statSync(file, { bigint: true });
  const [major, minor] = deviceNumbers(dev);
  for (const line of (readIfExists('/proc/locks') ?? '').split('\n')) {
    const match = LOCK_LINE.exec(line);
    if (match === null) continue;
    const [lockMajor, lockMinor, lockInode, first, last] = match.slice(1) as [
      string,
      string,
      string,
      string,
      string,
    ];
    if (BigInt(lockInode) !== ino || BigInt(`0x${lockMajor}`) !== major || BigInt(`0x${lockMinor}`) !== minor)
      continue;
    if (Number(first) < FIRST_PERMISSION_BYTE || Number(last) > LAST_PERMISSION_BYTE) continue;
    if (Number(first) <= WRITER_BYTE && WRITER_BYTE <= Number(last)) return true;
  }
  return false;
}
