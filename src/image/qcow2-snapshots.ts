import * as fs from 'node:fs';

/** `nb_snapshots` of the header: docs/interop/qcow2.txt of QEMU. Big-endian. */
const SNAPSHOTS_OFFSET = 60;
const SNAPSHOTS_BYTES = 4;

/** How many states of the disk a qcow2 file keeps inside. A VM may write to it meanwhile, which could fail a program that opens it as an image. */
export function countSnapshots(file: string): number {
  const fd = fs.openSync(file, 'r');
  try {
    const field = Buffer.alloc(SNAPSHOTS_BYTES);
    fs.readSync(fd, field, 0, SNAPSHOTS_BYTES, SNAPSHOTS_OFFSET);
    return field.readUInt32BE();
  } finally {
    fs.closeSync(fd);
  }
}
