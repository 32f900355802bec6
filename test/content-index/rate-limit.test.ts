import { Worker } from 'node:worker_threads';
import { describe, expect, it } from 'vitest';
import { RateLimit, sharedRate } from '../../src/content-index/rate-limit.js';
import { build, requireAll } from '../support/requirements.js';

const MODULE = new URL('../../build/content-index/rate-limit.js', import.meta.url).href;

/** A thread that pays 100 bytes `times` times, and ends. */
function payer(shared: unknown, times: number): Promise<void> {
  const code = `import { workerData } from 'node:worker_threads';
    const { RateLimit } = await import(workerData.module);
    const limit = new RateLimit(workerData.shared);
    for (let i = 0; i < workerData.times; i++) limit.pay(100, () => false);`;
  const url = new URL(`data:text/javascript,${encodeURIComponent(code)}`);
  const worker = new Worker(url, { workerData: { module: MODULE, shared, times } });
  return new Promise((resolve, reject) => worker.on('exit', () => resolve()).on('error', reject));
}

describe('a limit', () => {
  it('holds for threads together', async () => {
    await requireAll(build);
    const shared = sharedRate(2_000);
    const begun = performance.now();
    await Promise.all([payer(shared, 10), payer(shared, 10)]);
    const seconds = (performance.now() - begun) / 1000;
    // 2000 bytes; the first 100 cost nothing yet.
    expect(seconds).toBeGreaterThan(0.9);
    expect(seconds).toBeLessThan(5);
  });

  it('saves nothing up', async () => {
    const limit = new RateLimit(sharedRate(1_000));
    limit.pay(100, () => false);
    await new Promise((resolve) => setTimeout(resolve, 400));
    const begun = performance.now();
    for (let i = 0; i < 3; i++) limit.pay(100, () => false);
    expect(performance.now() - begun).toBeGreaterThan(180);
  });

  it('does not keep one that is asked to stop, and costs nothing for nothing', () => {
    const limit = new RateLimit(sharedRate(1));
    expect(limit.pay(1_000, () => true)).toBe(false);
    let asked = 0;
    const begun = performance.now();
    expect(limit.pay(1_000, () => ++asked > 2)).toBe(false);
    expect(performance.now() - begun).toBeLessThan(2_000);
    expect(limit.pay(0, () => true)).toBe(true);
  });
});
