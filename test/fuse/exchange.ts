import { createHasher } from '../../src/chunks/chunk-hash.js';
import { ChunkFilesystem } from '../../src/fuse/chunk-filesystem.js';
import type { ChunkTree } from '../../src/fuse/chunk-tree.js';
import {
  COUNTER_NAMES,
  handle,
  REPLY_BUFFER_LENGTH,
  type ServedFilesystem,
} from '../../src/fuse/handlers.js';
import { Opcode } from '../../src/fuse/wire/protocol.js';
import { Reply } from '../../src/fuse/wire/reply.js';
import { Request } from '../../src/fuse/wire/request.js';
import {
  decode,
  ENTRY_OUT,
  encode,
  type Fields,
  IN_HEADER,
  type Layout,
  lengthOf,
  OUT_HEADER,
  READ_IN,
} from './wire/layouts.js';

const GUARD_LENGTH = 4096;
const GUARD = 0xa5;
const REQUEST_LENGTH = 8192;

/** What came back: the error (0: none), and what stands after the header. */
export interface Answer {
  readonly error: number;
  readonly payload: Buffer;
}

/** A served tree without a kernel: takes the bytes of a request, gives those of the reply. */
export class Exchange {
  readonly served: ServedFilesystem;
  readonly #guarded = Buffer.alloc(GUARD_LENGTH + REPLY_BUFFER_LENGTH + GUARD_LENGTH, GUARD);
  readonly #reply = new Reply(this.#guarded.subarray(GUARD_LENGTH, GUARD_LENGTH + REPLY_BUFFER_LENGTH));
  readonly #request = new Request(Buffer.alloc(REQUEST_LENGTH, 0xff));
  #unique = 2n ** 53n;

  private constructor(
    readonly filesystem: ChunkFilesystem,
    directIo: boolean,
  ) {
    this.served = { filesystem, directIo, counters: new Float64Array(COUNTER_NAMES.length) };
  }

  static async of(tree: ChunkTree, directIo = false): Promise<Exchange> {
    return new Exchange(new ChunkFilesystem(tree, await createHasher()), directIo);
  }

  /** Sends a request that the kernel could send. Throws for a reply that the kernel would not accept. */
  ask(opcode: number, nodeid: number | bigint, ...payload: readonly Uint8Array[]): Answer | undefined {
    const body = Buffer.concat(payload);
    this.#unique += 1n;
    const len = lengthOf(IN_HEADER) + body.length;
    const header = encode(IN_HEADER, { len, opcode, unique: this.#unique, nodeid, uid: 0, gid: 0, pid: 1 });
    const length = this.send(Buffer.concat([header, body]));
    if (length === 0) return undefined;
    const out = decode(this.#reply.bytes, OUT_HEADER);
    if (out.len !== length) throw new Error(`the header says ${out.len}, not ${length}`);
    if (out.unique !== this.#unique) throw new Error(`answers ${out.unique}, not ${this.#unique}`);
    const error = Number(out.error);
    if (error > 0 || error < -511 || (error < 0 && length !== 16))
      throw new Error(`error ${error} in ${length} bytes`);
    return { error, payload: Buffer.from(this.#reply.bytes.subarray(16, length)) };
  }

  /** Hands over any bytes. Returns the reply's length; -1: they are no request. Throws if a write missed the reply buffer. */
  send(bytes: Uint8Array): number {
    this.#request.bytes.set(bytes);
    if (!this.#request.parse(bytes.length)) return -1;
    const length = handle(this.served, this.#request, this.#reply);
    const before = this.#guarded.subarray(0, GUARD_LENGTH);
    const after = this.#guarded.subarray(GUARD_LENGTH + REPLY_BUFFER_LENGTH);
    if (!before.every((byte) => byte === GUARD) || !after.every((byte) => byte === GUARD)) {
      throw new Error('written beyond the reply buffer');
    }
    if (length > REPLY_BUFFER_LENGTH) throw new Error(`a reply of ${length} bytes`);
    return length;
  }

  lookup(parent: number | bigint, name: string): Answer {
    return this.ask(Opcode.LOOKUP, parent, named(name))!;
  }

  /** The node of a path, by LOOKUPs as the kernel does them. */
  node(path: string): bigint {
    let inode = 1n;
    for (const name of path.split('/').filter(Boolean)) {
      inode = fields(this.lookup(inode, name), ENTRY_OUT).nodeid as bigint;
    }
    return inode;
  }

  read(inode: bigint, offset: number | bigint, size: number): Answer {
    return this.ask(Opcode.READ, inode, encode(READ_IN, { offset, size }))!;
  }

  /** By COUNTER_NAMES. */
  counters(): Record<string, number> {
    return Object.fromEntries(COUNTER_NAMES.map((name, i) => [name, this.served.counters[i]!]));
  }
}

export function fields(answer: Answer | undefined, layout: Layout): Fields {
  if (answer === undefined) throw new Error('no reply');
  if (answer.error !== 0) throw new Error(`error ${answer.error}`);
  return decode(answer.payload, layout);
}

export function named(name: string): Buffer {
  return Buffer.from(`${name}\0`);
}
