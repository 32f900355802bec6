import * as fs from 'node:fs';
import { failed } from '../errors.js';

/** Of the header: docs/interop/qcow2.txt of QEMU. All numbers are big-endian. */
const L1_SIZE_OFFSET = 36;
const L1_TABLE_OFFSET_OFFSET = 40;
const HEADER_BYTES = 48;
const L1_ENTRY_BYTES = 8;

/**
 * Throws when a qcow2 file ends before its first-level table does. QEMU takes what is missing for zeros and says nothing, so that an
 * image that is cut off there would be backed up as an empty disk. `fileSize` in bytes.
 */
export function checkQcow2Bounds(file: string, fileSize: number): void {
  const header = Buffer.alloc(HEADER_BYTES);
  const fd = fs.openSync(file, 'r');
  try {
    // A shorter one has been refused by QEMU.
    fs.readSync(fd, header, 0, HEADER_BYTES, 0);
  } finally {
    fs.closeSync(fd);
  }
  const length = header.readUInt32BE(L1_SIZE_OFFSET) * L1_ENTRY_BYTES;
  const end = header.readBigUInt64BE(L1_TABLE_OFFSET_OFFSET) + BigInt(length);
  if (length === 0 || end <= BigInt(fileSize)) return;
  throw failed(`the image ${file} is cut off: it ends at ${fileSize}, and its tables reach up to ${end}`, {
    hint: 'take it from another copy; qemu-img check -f qcow2 says what else is wrong with it',
    details: { path: file, size: fileSize },
  });
}
