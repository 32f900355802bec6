import * as fs from 'node:fs';
import * as path from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { program } from '../support/requirements.js';
import { BackedUpVm, CHUNKS, EXAMPLES, OPTIONS } from './backed-up-vm.js';

const vm = new BackedUpVm();
const env = {
  BORG_REPO: vm.path('repository'),
  BORG_BASE_DIR: vm.path('borg'),
  BORG_PASSPHRASE: 'secret',
  KEEP: '--keep-last=2',
};
const backup = () => vm.run([path.join(EXAMPLES, 'borg/borg-daily'), 'mail01', ...OPTIONS], { env });

describe('examples/borg', () => {
  beforeAll(async () => {
    await vm.start(program('borg', 'borgbackup'));
    await vm.run(['borg', 'init', '--encryption=repokey'], { env });
  });
  afterAll(() => vm.close());

  // borg does not remember files with the newest time that it saw, and in a first backup all chunks have the same one.
  it('reads each chunk once, none that did not change, and those that did; backups come back, the oldest is removed', async () => {
    const first = await vm.content();
    await backup();
    await backup();
    const changed = await vm.change();
    await backup();
    expect(vm.chunksRead()).toEqual([CHUNKS, 0, changed.length]);

    const archives = (await vm.run(['borg', 'list', '--short'], { env })).split('\n');
    expect(archives).toEqual([2, 3].map(() => expect.stringMatching(/^mail01-.*T.*Z$/)));
    for (const [archive = '', content] of [
      [archives[0], first],
      [archives[1], await vm.content()],
    ] as const) {
      const target = vm.path(archive);
      fs.mkdirSync(target);
      await vm.run(['borg', 'extract', `::${archive}`], { env, cwd: target });
      await vm.expectRestorable(target, content);
    }
  });
});
