import * as fs from 'node:fs';
import * as path from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { BackedUpVm, CHUNKS, EXAMPLES, OPTIONS, ZERO_CHUNKS } from './backed-up-vm.js';

const vm = new BackedUpVm();
const example = (name: string) => path.join(EXAMPLES, 'pre-post', name);

/** What a backup program does that runs a command before and after. */
async function backup(number: number): Promise<void> {
  await vm.run([example('chunkmount-pre'), 'mail01', ...OPTIONS]);
  const options = ['--sparse', '--no-check-device', `--listed-incremental=${vm.path('tar.snar')}`];
  const file = `--file=${vm.path(`${number}.tar`)}`;
  await vm.run(['tar', '--create', ...options, file, `--directory=${path.dirname(vm.tree)}`, 'mail01']);
  await vm.run([example('chunkmount-post'), 'mail01']);
}

/** Restores the full backup and all increments up to this one. */
async function restore(number: number): Promise<string> {
  const target = vm.path(`restored-${number}`);
  fs.mkdirSync(target);
  for (let i = 1; i <= number; i++) {
    const options = ['--listed-incremental=/dev/null', `--file=${vm.path(`${i}.tar`)}`];
    await vm.run(['tar', '--extract', ...options, `--directory=${target}`]);
  }
  return path.join(target, 'mail01');
}

describe('GNU tar with examples/pre-post', () => {
  beforeAll(() => vm.start());
  afterAll(() => vm.close());

  it('reads each chunk that has data, none that did not change, and those that did; each backup comes back', async () => {
    const first = await vm.content();
    await backup(1);
    await backup(2);
    const changed = await vm.change();
    await backup(3);
    expect(vm.chunksRead()).toEqual([CHUNKS - ZERO_CHUNKS.length, 0, changed.length - 1]);
    await vm.expectRestorable(await restore(2), first);
    await vm.expectRestorable(await restore(3), await vm.content());
  });

  it('has no tree when the VM cannot be frozen', async () => {
    await expect(vm.run([example('chunkmount-pre'), 'nosuch'])).rejects.toThrow(/there is no VM called/);
    expect(fs.existsSync(path.dirname(vm.tree)) ? fs.readdirSync(path.dirname(vm.tree)) : []).toEqual([]);
  });
});
