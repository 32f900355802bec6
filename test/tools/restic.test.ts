import * as path from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { program } from '../support/requirements.js';
import { BackedUpVm, CHUNKS, EXAMPLES, OPTIONS } from './backed-up-vm.js';

const vm = new BackedUpVm();
const env = {
  RESTIC_REPOSITORY: vm.path('repository'),
  RESTIC_PASSWORD_FILE: vm.path('password'),
  RESTIC_CACHE_DIR: vm.path('cache'),
  KEEP: '--keep-last=2',
};
const backup = () => vm.run([path.join(EXAMPLES, 'restic/restic-daily'), 'mail01', ...OPTIONS], { env });

describe('examples/restic', () => {
  beforeAll(async () => {
    await vm.start(program('restic'));
    vm.write('password', 'secret\n');
    await vm.run(['restic', 'init'], { env });
  });
  afterAll(() => vm.close());

  it('reads each chunk once, none that did not change, and those that did; backups come back, the oldest is removed', async () => {
    const first = await vm.content();
    await backup();
    await backup();
    const changed = await vm.change();
    await backup();
    expect(vm.chunksRead()).toEqual([CHUNKS, 0, changed.length]);

    const snapshots = JSON.parse(await vm.run(['restic', 'snapshots', '--json'], { env }));
    expect(snapshots).toMatchObject([2, 3].map(() => ({ tags: ['mail01'], paths: [vm.tree] })));
    for (const [snapshot, content] of [
      [snapshots[0].id, first],
      ['latest', await vm.content()],
    ]) {
      const target = vm.path(`restored-${snapshot}`);
      await vm.run(['restic', 'restore', snapshot, '--tag=mail01', `--target=${target}`], { env });
      await vm.expectRestorable(target, content);
    }
  });

  it('fails when restic does, and leaves nothing behind', async () => {
    vm.write('password', 'wrong\n');
    await expect(backup()).rejects.toThrow(/restic-daily mail01 .*: 1\n/);
    expect(JSON.parse(await vm.run(['chunkmount', 'list', '--json']))).toMatchObject({ sessions: [] });
  });
});
