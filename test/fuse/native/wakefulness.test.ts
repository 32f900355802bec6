import { availableParallelism } from 'node:os';
import { setTimeout } from 'node:timers/promises';
import { expect, test } from 'vitest';
import { Wakefulness } from '../../../src/fuse/native/wakefulness.js';

const polls = () => process.getActiveResourcesInfo().includes('Immediate');

test.skipIf(availableParallelism() === 1)('polls after a request, and soon no more', async () => {
  const wakefulness = new Wakefulness();
  wakefulness.prolong();
  expect(polls()).toBe(true);
  await setTimeout(100);
  expect(polls()).toBe(false);
});
