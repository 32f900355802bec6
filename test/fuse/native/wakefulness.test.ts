import { availableParallelism } from 'node:os';
import { expect, test, vi } from 'vitest';
import { Wakefulness } from '../../../src/fuse/native/wakefulness.js';

const polls = () => process.getActiveResourcesInfo().includes('Immediate');

test.skipIf(availableParallelism() === 1)('polls after a request, and soon no more', async () => {
  const wakefulness = new Wakefulness();
  wakefulness.prolong();
  expect(polls()).toBe(true);
  await vi.waitFor(() => expect(polls()).toBe(false), { timeout: 60_000 });
});
