import { configDefaults, defineConfig } from 'vitest/config';
import { LongestFirst } from './test/support/longest-first.js';

/** Set by scripts/lvm-vm in its machine, which has device-mapper, and in which everything takes several times as long. */
const inLvmVm = process.env.CHUNKMOUNT_LVM_VM !== undefined;

/** Tests of pure code: they touch nothing but files of their own and may run beside each other. */
const pure = [
  'test/*.test.ts',
  'test/chunks/**/*.test.ts',
  'test/content-index/**/*.test.ts',
  'test/fuse/wire/**/*.test.ts',
  'test/report/**/*.test.ts',
];

const exclude = [...configDefaults.exclude, ...(inLvmVm ? [] : ['test/lvm/**'])];

/** Milliseconds. A domain starts in 1 s and a session takes some; the rest is for busy machines. */
const timeout = inLvmVm ? 600_000 : 120_000;

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
          testTimeout: timeout,
          hookTimeout: timeout,
          sequence: { groupOrder: 1 },
        },
      },
    ],
  },
});
