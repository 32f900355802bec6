/** Worker thread: reads chunks of a tree and compares them with their sums; looks for files that do not belong there. */
import { workerData } from 'node:worker_threads';
import { CHUNKS_PER_DIRECTORY } from '../chunks/geometry.js';
import { directoryPath, layoutOf } from '../chunks/layout.js';
import { ChunkSource, type SharedSource } from './chunk-source.js';
import { stray, unlisted } from './problem.js';
import { isSampled, type Sample } from './sample.js';
import { type SharedQueue, WorkQueue } from './work-queue.js';
import { tell, workOff } from './worker-loop.js';

export interface VerifyTask {
  readonly source: SharedSource;
  readonly queue: SharedQueue;
  /** The chunks whose content is read; of the others only the size is looked at. */
  readonly sample: Sample;
}

const task = workerData as VerifyTask;
const source = await ChunkSource.create(task.source);
const queue = new WorkQueue(task.queue);
const { disk } = source;
const layout = layoutOf(disk.layout);

function verify(index: number): void {
  if (source.isSkipped(index)) {
    // There is nothing to read.
    queue.count('verified');
    return;
  }
  if (source.isLost(index) || !source.hasSums || !isSampled(task.sample, index)) {
    source.checkSize(index);
    return;
  }
  source.verify(index);
  queue.count('verified');
}

/** Whoever claims the first chunk of a directory lists it. */
function findStrays(first: number): void {
  if (first % CHUNKS_PER_DIRECTORY !== 0) return;
  const number = first / CHUNKS_PER_DIRECTORY;
  const end = Math.min(first + CHUNKS_PER_DIRECTORY, disk.chunkCount);
  const path = `${disk.directory}/${directoryPath(layout, number)}`;
  try {
    for (const name of source.names(number)) {
      const index = layout.parseChunkName(number, name);
      // A file in the place of a chunk that has none is of another backup.
      if (index < first || index >= end || source.isSkipped(index))
        tell({ kind: 'problem', problem: stray(`${path}/${name}`) });
    }
  } catch (error) {
    // Its chunks may be there all the same.
    tell({ kind: 'problem', problem: unlisted(path, error) });
  }
}

workOff({ queue, work: verify, onBlock: findStrays, onDamage: () => {} });
source.close();
