import * as fs from 'node:fs';
import { failed } from '../errors.js';

/** Of the header: docs/interop/qcow2.txt of QEMU. All numbers are big-endian. */
const CLUSTER_BITS_OFFSET = 20;
const L1_SIZE_OFFSET = 36;
const L1_TABLE_OFFSET_OFFSET = 40;
const HEADER_BYTES = 48;
const L1_ENTRY_BYTES = 8;

/**
 * Throws when a qcow2 file ends before its first-level table does, or before one of the second level. QEMU takes what is missing for
 * zeros and says nothing, so that an image that is cut off there would be backed up as if it were empty. A VM may write to it meanwhile.
 */
export function checkQcow2Bounds(file: string): void {
  const fd = fs.openSync(file, 'r');
  let [end, fileSize] = [0, 0];
  try {
    end = endOfTables(fd);
    // Only now: QEMU writes a table before it records where it is.
    fileSize = fs.fstatSync(fd).size;
  } finally {
    fs.closeSync(fd);
  }
  if (end <= fileSize) return;
  throw failed(`the image ${file} is cut off: it ends at ${fileSize}, and its tables reach up to ${end}`, {
    hint: 'take it from another copy; qemu-img check -f qcow2 says what else is wrong with it',
    details: { path: file, size: fileSize },
  });
}

/** Where the last table of an image that QEMU has opened ends, as far as the first-level table is there. */
function endOfTables(fd: number): number {
  const header = Buffer.alloc(HEADER_BYTES);
  fs.readSync(fd, header, 0, HEADER_BYTES, 0);
  // QEMU has refused tables of more than 32 MiB.
  const length = header.readUInt32BE(L1_SIZE_OFFSET) * L1_ENTRY_BYTES;
  const offset = Number(header.readBigUInt64BE(L1_TABLE_OFFSET_OFFSET));
  if (length === 0) return 0;
  if (offset + length > fs.fstatSync(fd).size) return offset + length;
  const table = Buffer.alloc(length);
  fs.readSync(fd, table, 0, length, offset);
  const clusterSize = 2 ** header.readUInt32BE(CLUSTER_BITS_OFFSET);
  let end = offset + length;
  for (let at = 0; at < length; at += L1_ENTRY_BYTES) {
    // Bits 9 to 55 are the offset of a table that fills one cluster; none at 0.
    const start =
      (table.readUInt32BE(at) & 0x00ff_ffff) * 2 ** 32 + ((table.readUInt32BE(at + 4) & 0xffff_fe00) >>> 0);
    if (start > 0) end = Math.max(end, start + clusterSize);
  }
  return end;
}
