/** Worker thread: writes what a compressor says into a file, and sums it. */
import { createHash } from 'node:crypto';
import * as fs from 'node:fs';
import { workerData } from 'node:worker_threads';
import { pageBuffer } from '../../host/page-buffer.js';
import { onOutput, writeTo } from './output.js';
import type { ThreadResult, WriteTask } from './task.js';
import { report } from './thread-end.js';

/** More than a pipe holds. */
const PIECE = 256 * 1024;

const { from, into } = workerData as WriteTask;

function copy(): ThreadResult {
  const hash = createHash('sha256');
  const piece = pageBuffer(PIECE);
  let size = 0;
  for (;;) {
    const count = fs.readSync(from, piece, 0, PIECE, null);
    if (count === 0) break;
    const data = piece.subarray(0, count);
    hash.update(data);
    writeTo(into, data, size);
    size += count;
  }
  onOutput(into, () => fs.fsyncSync(into.fd));
  return { kind: 'done', size, sha256: hash.digest('hex') };
}

report(copy);
