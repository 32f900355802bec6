import { expect, it } from 'vitest';
import { WorkQueue } from '../../src/restore/work-queue.js';

it('a work queue hands out every chunk once, in order, and knows how far it is', () => {
  const queue = WorkQueue.create(10, 4);
  expect([queue.blockCount, queue.reached]).toEqual([3, 0]);
  const claimed = [];
  for (let block = queue.claim(); block !== undefined; block = queue.claim()) {
    claimed.push({ ...block, reached: queue.reached });
  }
  expect(claimed).toEqual([
    { first: 0, end: 4, reached: 4 },
    { first: 4, end: 8, reached: 8 },
    { first: 8, end: 10, reached: 10 },
  ]);
  expect(queue.reached).toBe(10);
});

it('a work queue that was stopped hands out nothing', () => {
  const queue = WorkQueue.create(10, 4);
  queue.claim();
  new WorkQueue(queue.shared).stop();
  expect([queue.claim(), queue.reached]).toEqual([undefined, 4]);
});
