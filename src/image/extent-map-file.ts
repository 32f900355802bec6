import { createHash } from 'node:crypto';
import * as fs from 'node:fs';
import { failed, messageOf } from '../errors.js';
import { replaceFile, writeFully } from '../host/durable.js';
import { ExtentMap, extentMapBytes } from './extent-map.js';

/**
 * An extent map in a file: magic (8 bytes), version and number of extents (32 bits each), the map as it is in memory, SHA-256
 * of all before. Numbers are in the byte order of the host, which writes it and reads it and nobody else does.
 */
const MAGIC = Buffer.from('CMEXTMAP', 'latin1');
const VERSION = 1;
const HEADER_LENGTH = 16;
const SUM_LENGTH = 32;

function header(count: number): Buffer {
  const bytes = Buffer.alloc(HEADER_LENGTH);
  MAGIC.copy(bytes);
  new Uint32Array(bytes.buffer, bytes.byteOffset + MAGIC.length, 2).set([VERSION, count]);
  return bytes;
}

function checksum(head: Uint8Array, body: Uint8Array): Buffer {
  return createHash('sha256').update(head).update(body).digest();
}

/** Writes the map, replacing the file if there is one. Not durably: the session that needs it does not outlive the host. */
export function saveExtentMap(file: string, map: ExtentMap): void {
  const head = header(map.count);
  const body = new Uint8Array(map.shared.buffer, 0, extentMapBytes(map.count));
  const write = (fd: number) => {
    writeFully(fd, head);
    writeFully(fd, body);
    writeFully(fd, checksum(head, body));
  };
  replaceFile(file, write, { durable: false });
}

function damaged(file: string, why: string): Error {
  return failed(`the extent map ${file} is damaged: ${why}`, {
    hint: 'end the session and begin a new one: chunkmount cleanup',
    details: { file },
  });
}

function readFully(fd: number, into: Uint8Array): boolean {
  let done = 0;
  while (done < into.byteLength) {
    const count = fs.readSync(fd, into, done, into.byteLength - done, null);
    if (count === 0) return false;
    done += count;
  }
  return true;
}

/** Loads what saveExtentMap wrote. Throws when the file cannot be read or is not exactly that. */
export function loadExtentMap(file: string): ExtentMap {
  let fd: number;
  try {
    fd = fs.openSync(file, 'r');
  } catch (error) {
    throw failed(`the extent map ${file} cannot be read: ${messageOf(error)}`, { cause: error });
  }
  try {
    const head = Buffer.alloc(HEADER_LENGTH);
    if (!readFully(fd, head) || !head.subarray(0, MAGIC.length).equals(MAGIC))
      throw damaged(file, 'it does not begin as one');
    const [version, count] = new Uint32Array(head.buffer, head.byteOffset + MAGIC.length, 2) as unknown as [
      number,
      number,
    ];
    if (version !== VERSION) throw damaged(file, `it has version ${version} instead of ${VERSION}`);
    if (fs.fstatSync(fd).size !== HEADER_LENGTH + extentMapBytes(count) + SUM_LENGTH)
      throw damaged(file, 'it has the wrong length');
    const buffer = new SharedArrayBuffer(extentMapBytes(count));
    const body = new Uint8Array(buffer);
    const sum = Buffer.alloc(SUM_LENGTH);
    if (!readFully(fd, body) || !readFully(fd, sum)) throw damaged(file, 'it is cut off');
    if (!checksum(head, body).equals(sum)) throw damaged(file, 'its checksum is wrong');
    return new ExtentMap({ buffer, count });
  } finally {
    fs.closeSync(fd);
  }
}
