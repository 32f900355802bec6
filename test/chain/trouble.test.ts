import * as fs from 'node:fs';
import { describe, expect, it } from 'vitest';
import { run } from '../../src/host/exec.js';
import type { ProgressTask } from '../../src/report/reporter.js';
import { RecordingReporter } from '../support/snapshot-session.js';
import {
  chain,
  copies,
  expectIdle,
  expectPoints,
  layers,
  own,
  pathsAtNextStart,
  pathsNow,
  runOnce,
  useChainVm,
  writeAndRun,
} from './chain-vm.js';

useChainVm();

/** The VM's disks, and the chain, are as they were before the first run. */
async function expectNothing(): Promise<void> {
  expect(await pathsNow()).toEqual(own());
  expect(await pathsAtNextStart()).toEqual(own());
  expect(layers()).toEqual([]);
  expect(copies()).toEqual([]);
  expectIdle();
}

/** Aborts as soon as the first disk is copied. */
class ImpatientReporter extends RecordingReporter {
  readonly patience = new AbortController();

  override progress(label: string): ProgressTask {
    this.patience.abort(new Error(`no time for ${label}`));
    return super.progress(label);
  }
}

describe('a run that fails puts the disks back', () => {
  it('when file systems have to be frozen and cannot', async () => {
    const options = { quiesce: 'require' } as const;
    await expect(runOnce({ options })).rejects.toThrow(/cannot be frozen/);
    await expectNothing();
  });

  it('when the copies do not fit where they go', async () => {
    fs.mkdirSync(chain, { recursive: true });
    await run('mount', ['-t', 'tmpfs', '-o', 'size=1M', 'tmpfs', chain]);
    try {
      await expect(writeAndRun()).rejects.toThrow(/No space left on device/);
      await expectNothing();
      await run('mount', ['-o', 'remount,size=64M', chain]);
      await expectPoints([await writeAndRun()]);
    } finally {
      await run('umount', [chain]);
    }
  });

  it('when it is told to stop while it copies', async () => {
    const reporter = new ImpatientReporter();
    const { signal } = reporter.patience;
    await expect(writeAndRun({ reporter, signal })).rejects.toThrow(/qemu-img was stopped/);
    await expectNothing();
    await expectPoints([await writeAndRun()]);
  });
});
