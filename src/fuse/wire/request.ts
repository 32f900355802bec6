import { IN_HEADER_LENGTH } from './protocol.js';

/**
 * One request as it lies in the read buffer (struct fuse_in_header: len u32, opcode u32, unique u64, nodeid u64, uid,
 * gid, pid, …), without copying. Reused from one request to the next.
 */
export class Request {
  length = 0;
  opcode = 0;
  inode = 0;
  readonly bytes: Buffer;
  readonly view: DataView;

  constructor(bytes: Buffer) {
    this.bytes = bytes;
    this.view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  }

  /** Takes up the `received` bytes in the buffer. False: they are no whole request. */
  parse(received: number): boolean {
    if (received < IN_HEADER_LENGTH) return false;
    this.length = this.view.getUint32(0, true);
    this.opcode = this.view.getUint32(4, true);
    this.inode = this.uint64(16);
    return this.length === received;
  }

  /** Whether the payload has `length` bytes at least. */
  has(length: number): boolean {
    return this.length >= IN_HEADER_LENGTH + length;
  }

  uint32(at: number): number {
    return this.view.getUint32(at, true);
  }

  /** Exact below 2^53; all that we hand out is. */
  uint64(at: number): number {
    return this.view.getUint32(at, true) + this.view.getUint32(at + 4, true) * 2 ** 32;
  }

  /** The string that ends at the next NUL byte, or at the end of the request. */
  string(at: number): string {
    const end = this.bytes.indexOf(0, at);
    return this.bytes.toString('utf8', at, end < 0 || end > this.length ? this.length : end);
  }
}
