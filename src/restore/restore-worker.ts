/** Worker thread: copies chunks of a tree to their places in a file or block device. */
import { workerData } from 'node:worker_threads';
import { systemCode } from '../errors.js';
import { pageBuffer } from '../host/page-buffer.js';
import { ChunkSource, type SharedSource } from './chunk-source.js';
import { readFully } from './full-io.js';
import { TargetWriter, type WritableTarget } from './target-writer.js';
import { type SharedQueue, WorkQueue } from './work-queue.js';
import { workOff } from './worker-loop.js';

export interface RestoreTask {
  readonly source: SharedSource;
  readonly queue: SharedQueue;
  readonly target: WritableTarget;
  /** Chunks below this one may be there already: they are read and hashed, and written only if they differ. */
  readonly compareBelow: number;
  /** What the target holds from `compareBelow` on: nothing but zeros, or who knows what. */
  readonly rest: 'zeros' | 'unknown';
  /** Write zeros for damaged chunks, and what cannot be checked as it is. */
  readonly keepGoing: boolean;
}

const task = workerData as RestoreTask;
const source = await ChunkSource.create(task.source);
const queue = new WorkQueue(task.queue);
const { disk } = source;
const writer = new TargetWriter(task.target, disk.chunkSize);
const present = pageBuffer(disk.chunkSize);

/** Whether chunk `index` is in the target already. A target that cannot be read is one that has to be written. */
function isPresent(index: number, length: number, test: (data: Uint8Array) => boolean): boolean {
  try {
    const got = readFully(task.target.fd, present, length, index * disk.chunkSize);
    return got === length && test(present.subarray(0, length));
  } catch (error) {
    if (systemCode(error) === 'EIO') return false;
    throw error;
  }
}

function equalTo(chunk: Buffer): (data: Uint8Array) => boolean {
  return (data) => Buffer.compare(data, chunk.subarray(0, data.byteLength)) === 0;
}

/** Whether the target already holds zeros in the place of a chunk that is not compared by hash. */
function restIsZero(index: number, length: number): boolean {
  if (index < task.compareBelow) return false;
  // Reading keeps the holes of a thin LV, and costs less than writing.
  return task.rest === 'zeros' || isPresent(index, length, (data) => source.holdsZeros(data, length));
}

/** Has chunk `index` written. `zero`: it may be all zeros, which then need not be written everywhere. */
function write(index: number, chunk: Buffer, zero: boolean): void {
  const length = source.lengthOf(index);
  if (zero && source.holdsZeros(chunk, length) && restIsZero(index, length)) {
    queue.count('zero');
  } else {
    writer.add(length);
    queue.count('written');
  }
}

function restore(index: number): void {
  const length = source.lengthOf(index);
  if (source.isSkipped(index) && restIsZero(index, length)) {
    queue.count('zero');
    return;
  }
  if (index < task.compareBelow && isPresent(index, length, (data) => source.matches(index, data))) {
    queue.count('unchanged');
    return;
  }
  const chunk = writer.place(index);
  source.read(index, chunk);
  if (!source.hasSums && index < task.compareBelow && isPresent(index, length, equalTo(chunk))) {
    queue.count('unchanged');
    return;
  }
  write(index, chunk, source.isZero(index) || !source.hasSums);
}

/** With --keep-going: zeros in place of what is damaged; what merely cannot be checked is better than zeros. */
function replace(damage: { kind: string; chunk: number }): void {
  const chunk = writer.place(damage.chunk);
  if (damage.kind !== 'unverified') chunk.fill(0, 0, source.lengthOf(damage.chunk));
  write(damage.chunk, chunk, true);
}

workOff({
  queue,
  work: restore,
  onBlockEnd: () => writer.flush(),
  onDamage: task.keepGoing ? replace : undefined,
});
source.close();
