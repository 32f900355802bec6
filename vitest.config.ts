import { configDefaults, defineConfig } from 'vitest/config';
import { LongestFirst } from './test/support/longest-first.js';
import { inLvmVm, TEST_TIMEOUT_MS } from './test/support/timeouts.js';

/** Tests of pure code: they touch nothing but files of their own and may run beside each other. */
const pure = [
  'test/*.test.ts',
  'test/chunks/**/*.test.ts',
  'test/content-index/**/*.test.ts',
  'test/fuse/wire/**/*.test.ts',
  'test/report/**/*.test.ts',
];

const exclude = [...configDefaults.exclude, ...(inLvmVm ? [] : ['test/lvm/**'])];

export default defineConfig({
  test: {
    reporters: ['default'],
    sequence: { sequencer: LongestFirst },
    projects: [
      {
        test: {
          name: 'pure',
          include: pure,
          exclude,
          testTimeout: 60_000,
          sequence: { groupOrder: 0 },
        },
      },
      {
        test: {
          name: 'host',
          include: ['test/**/*.test.ts'],
          exclude: [...exclude, ...pure],
          // They mount, start VMs and kill processes, and there may be two processors only: one file at a time.
          fileParallelism: false,
          testTimeout: TEST_TIMEOUT_MS,
          hookTimeout: TEST_TIMEOUT_MS,
          sequence: { groupOrder: 1 },
        },
      },
    ],
  },
});
