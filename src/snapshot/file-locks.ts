import * as fs from 'node:fs';

/**
 * QEMU takes shared locks on single bytes of an image file: 100 + n says "I use permission n", 200 + n "nobody else
 * may"; permission 1 is write. See RAW_LOCK_PERM_BASE in QEMU's block/file-posix.c.
 */
const WRITER_BYTE = 101;

/** A line of /proc/locks, see proc_locks(5): the file as hex major:minor and decimal inode, the first and last byte. */
const LOCK = /^\d+: \S+ +\S+ +\S+ -?\d+ ([0-9a-f]+):([0-9a-f]+):(\d+) (\d+) (\d+|EOF)$/;

/** Major and minor of a st_dev: gnu_dev_major and gnu_dev_minor of glibc's sysmacros.h. */
function deviceNumbers(dev: bigint): [bigint, bigint] {
  const major = ((dev >> 8n) & 0xfffn) | ((dev >> 32n) & 0xfffff000n);
  const minor = (dev & 0xffn) | ((dev >> 12n) & 0xffffff00n);
  return [major, minor];
}

/**
 * Whether some QEMU program has the image open for writing. False also where this cannot be seen: on network file systems, in
 * another PID namespace's files, with QEMU's locking off.
 */
export function isWrittenByQemu(file: string): boolean {
  const { dev, ino } = fs.statSync(file, { bigint: true });
  const [major, minor] = deviceNumbers(dev);
  return fs
    .readFileSync('/proc/locks', 'latin1')
    .split('\n')
    .some((line) => {
      const [, lockMajor, lockMinor, lockInode, first, last] = LOCK.exec(line) ?? [];
      return (
        lockInode === String(ino) &&
        BigInt(`0x${lockMajor}`) === major &&
        BigInt(`0x${lockMinor}`) === minor &&
        Number(first) <= WRITER_BYTE &&
        (last === 'EOF' || Number(last) >= WRITER_BYTE)
      );
    });
}
