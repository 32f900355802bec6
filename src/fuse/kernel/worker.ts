import { once } from 'node:events';
import * as fs from 'node:fs';
import { parentPort, workerData } from 'node:worker_threads';
import { systemCode } from '../../errors.js';
import { pageBuffer } from '../../host/page-buffer.js';
import { handle, REPLY_BUFFER_LENGTH, type ServedFilesystem } from '../handlers.js';
import { loadFactory } from '../transport.js';
import { Opcode, OUT_HEADER_LENGTH } from '../wire/protocol.js';
import { Reply } from '../wire/reply.js';
import { Request } from '../wire/request.js';

export interface KernelWorkerData {
  /** As in FilesystemSource. */
  readonly factory: string;
  /** /dev/fuse, open. */
  readonly fd: number;
  readonly counters: Float64Array;
}

/** What a worker is told to serve, as a message. */
export interface KernelWork {
  /** As in FilesystemSource. */
  readonly data: unknown;
  readonly directIo: boolean;
}

/** What a worker tells: that it takes requests from now on; that the mount answers. */
export type KernelMessage = 'serving' | 'connected';

function tell(message: KernelMessage): void {
  parentPort?.postMessage(message);
}

/** The kernel wants room for max(8192, 80 + max_write), else it answers EINVAL: see fuse_dev_do_read in fs/fuse/dev.c. */
const REQUEST_BUFFER_LENGTH = 128 * 1024;

/** Not mounted yet: the descriptor is not connected before mount(2). */
const NOT_MOUNTED_PAUSE_MS = 2;

/** Errors of a read that mean: try again. EPERM: not mounted yet. */
const RETRY = new Set(['EINTR', 'EAGAIN', 'ENOENT']);
/** Errors that mean: the mount is gone, or the connection was aborted. */
const ENDED = new Set(['ENODEV', 'ECONNABORTED']);

/** Bytes of the next request; 0: none this time; -1: the mount is gone. */
function receive(fd: number, buffer: Buffer): number {
  try {
    return fs.readSync(fd, buffer, 0, buffer.length, null);
  } catch (error) {
    const code = systemCode(error) ?? '';
    if (ENDED.has(code)) return -1;
    if (code === 'EPERM') Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, NOT_MOUNTED_PAUSE_MS);
    else if (!RETRY.has(code)) throw error;
    return 0;
  }
}

function send(fd: number, reply: Reply, length: number): void {
  try {
    fs.writeSync(fd, reply.bytes, 0, length, null);
  } catch (error) {
    // ENOENT: whoever asked has been interrupted. The rest shows at the next read.
    const code = systemCode(error) ?? '';
    if (code !== 'ENOENT' && !ENDED.has(code)) throw error;
  }
}

/** Answers requests until the mount is gone. */
function serve(fd: number, served: ServedFilesystem): void {
  const request = new Request(Buffer.allocUnsafeSlow(REQUEST_BUFFER_LENGTH));
  const reply = new Reply(pageBuffer(REPLY_BUFFER_LENGTH, OUT_HEADER_LENGTH));
  for (;;) {
    const received = receive(fd, request.bytes);
    if (received < 0) return;
    if (!request.parse(received)) continue;
    const length = handle(served, request, reply);
    if (length > 0) send(fd, reply, length);
    if (request.opcode === Opcode.INIT) tell('connected');
  }
}

const { factory, fd, counters } = workerData as KernelWorkerData;
const createFilesystem = await loadFactory(factory);
const [{ data, directIo }] = (await once(parentPort!, 'message')) as [KernelWork];
const filesystem = await createFilesystem(data);
tell('serving');
serve(fd, { filesystem, directIo, counters });
