/** Worker thread: reads a disk from its beginning to its end, into a file or pipe, and sums it. */
import { createHash } from 'node:crypto';
import * as fs from 'node:fs';
import { workerData } from 'node:worker_threads';
import { failed } from '../../errors.js';
import { pageBuffer } from '../../host/page-buffer.js';
import { ExtentMap, ZERO_SOURCE } from '../../image/extent-map.js';
import { ExtentReader } from '../../image/extent-reader.js';
import { onOutput, writeTo } from './output.js';
import { DONE, type ReadTask, STOP, type ThreadResult } from './task.js';
import { report } from './thread-end.js';

/** Bytes read at once. */
const PIECE = 1024 * 1024;
/** Zeros of this length, and aligned to it, become a hole although they are stored as data. The block of common file systems. */
const BLOCK = 4096;

const { disk, extents, sources, into, control } = workerData as ReadTask;
const map = new ExtentMap(extents);
const reader = new ExtentReader(disk, map, sources);
const counters = new BigInt64Array(control);
const hash = createHash('sha256');
const zeros = Buffer.alloc(PIECE);
const piece = pageBuffer(PIECE);

/** Writes what is not zero; the file has been made of zeros. */
function writeSparse(output: { fd: number; path: string }, data: Uint8Array, position: number): void {
  const isHole = (at: number) => {
    const end = Math.min(at + BLOCK, data.byteLength);
    return zeros.compare(data, at, end, 0, end - at) === 0;
  };
  for (let at = 0; at < data.byteLength; ) {
    if (isHole(at)) {
      at += BLOCK;
      continue;
    }
    let end = at + BLOCK;
    while (end < data.byteLength && !isHole(end)) end += BLOCK;
    writeTo(output, data.subarray(at, end), position + at);
    at = end;
  }
}

/** Pieces begin at multiples of their length, so that blocks are aligned in the file; a zero extent may cut them. */
function copyPiece(position: number): number {
  const extent = map.find(position);
  const zero = map.sourceOf(extent) === ZERO_SOURCE && map.endOf(extent) - position >= BLOCK;
  const aligned = Math.min(map.size, (Math.floor(position / PIECE) + 1) * PIECE);
  const end = zero ? Math.min(map.endOf(extent), aligned) : aligned;
  const length = end - position;
  const data = (zero ? zeros : piece).subarray(0, length);
  if (!zero) reader.read(position, length, piece, 0);
  if (into.kind === 'pipe') writeTo(into, data, null);
  else hash.update(data);
  if (into.kind === 'file' && !zero) writeSparse(into, data, position);
  return length;
}

function copy(): ThreadResult {
  if (into.kind === 'file') onOutput(into, () => fs.ftruncateSync(into.fd, map.size));
  for (let position = 0; position < map.size; ) {
    if (Atomics.load(counters, STOP) !== 0n) throw failed(`reading disk ${disk} was stopped`);
    const length = copyPiece(position);
    position += length;
    Atomics.add(counters, DONE, BigInt(length));
  }
  if (into.kind === 'file') onOutput(into, () => fs.fsyncSync(into.fd));
  return { kind: 'done', size: map.size, sha256: hash.digest('hex') };
}

report(copy);
