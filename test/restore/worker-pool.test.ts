import { describe, expect, it } from 'vitest';
import { geometry } from '../../src/chunks/geometry.js';
import { WorkQueue } from '../../src/restore/work-queue.js';
import { MAX_LISTED, type PoolResult, runPool } from '../../src/restore/worker-pool.js';
import { RecordingContext } from './built.js';
import { CHUNK, KIB } from './demo-tree.js';

const CHUNK_COUNT = 4;

/** A pool of one worker thread, which is this text. */
async function run(text: string, queue = WorkQueue.create(CHUNK_COUNT, CHUNK_COUNT)): Promise<PoolResult> {
  const { reporter, signal } = new RecordingContext();
  const worker = new URL(`data:text/javascript,${encodeURIComponent(text)}`);
  const disk = geometry(CHUNK_COUNT * CHUNK, 4 * KIB);
  return runPool({ worker, task: {}, queue, disk, label: 'test', reporter, signal });
}

const TELL = `import { parentPort } from 'node:worker_threads';
  const tell = (chunk) => parentPort.postMessage({ kind: 'damage', damage: { chunk } });`;

describe('a pool of worker threads', () => {
  it('fails when one of them dies, and stops the others', async () => {
    const queue = WorkQueue.create(CHUNK_COUNT, CHUNK_COUNT);
    await expect(run(`throw new Error('out of memory')`, queue)).rejects.toMatchObject({
      kind: 'failed',
      message: 'a worker thread died: out of memory',
    });
    expect(queue.stopped).toBe(true);
  });

  it('gives damage in order of chunk', async () => {
    const { damage } = await run(`${TELL} for (const chunk of [3, 0, 2]) tell(chunk);`);
    expect(damage.map(({ chunk }) => chunk)).toEqual([0, 2, 3]);
  });

  it('counts more damage than it lists', async () => {
    const { damage, damageCount } = await run(`${TELL} for (let i = 0; i <= ${MAX_LISTED}; i++) tell(i);`);
    expect([damage.length, damageCount]).toEqual([MAX_LISTED, MAX_LISTED + 1]);
  });
});
