import * as fs from 'node:fs';
import { parentPort, workerData } from 'node:worker_threads';
import { createHasher } from '../../build/chunks/chunk-hash.js';
import { StoredIndex } from '../../build/content-index/index-file.js';
import { Resolver } from '../../build/content-index/resolver.js';
import { scanDisk } from '../../build/content-index/scan.js';

/**
 * Resolves chunks of the disk in a file as a thread of the daemon does. `reads` counts how often each chunk was read;
 * `pauseMs` makes reads slow.
 */
const { disk, rows, times, fd, stored, reads, pauseMs, work } = workerData;

const pause = new Int32Array(new SharedArrayBuffer(4));
const reader = {
  read(position, length, buffer, offset) {
    if (pauseMs > 0) Atomics.wait(pause, 0, 0, pauseMs);
    const first = Math.floor(position / disk.chunkSize);
    for (let chunk = first; chunk * disk.chunkSize < position + length; chunk++) Atomics.add(reads, chunk, 1);
    const got = fs.readSync(fd, buffer, offset, length, position);
    if (got !== length) throw new Error(`${got} of ${length} bytes at ${position}`);
  },
};
const zeroMap = { isZero: () => fd === undefined };
const index = stored === undefined ? undefined : StoredIndex.attach(stored.fd, stored.header);
const resolver = new Resolver(disk, rows, reader, zeroMap, await createHasher(), times, index);

parentPort.postMessage('ready');
parentPort.on('message', () => {
  if (work.scan) scanDisk(resolver);
  const states = (work.chunks ?? []).map((chunk) => resolver.resolve(chunk));
  for (const [first, end] of work.ranges ?? []) resolver.resolveRange(first, end);
  parentPort.postMessage(states);
});
