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
const backup = (name = 'mail01') =>
  vm.run([path.join(EXAMPLES, 'borg/borg-daily'), name, ...OPTIONS], { env });
const archives = async (...options: string[]) =>
  (await vm.run(['borg', 'list', '--short', ...options], { env })).split('\n');

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

    const names = await archives();
    expect(names).toEqual([2, 3].map(() => expect.stringMatching(/^mail01-.*T.*Z$/)));
    for (const [archive = '', content] of [
      [names[0], first],
      [names[1], await vm.content()],
    ] as const) {
      const target = vm.path(archive);
      fs.mkdirSync(target);
      await vm.run(['borg', 'extract', `::${archive}`], { env, cwd: target });
      await vm.expectRestorable(target, content);
    }
  });

  it('removes no backup of a VM whose name begins with that of another', async () => {
    await vm.defineOther('mail01-db');
    await backup('mail01-db');
    const [other] = await archives('--glob-archives=mail01-db-*');
    for (let i = 0; i < 2; i++) await backup();
    expect(await archives('--glob-archives=mail01-????-??-??T??????Z')).toHaveLength(2);
    expect(await archives('--glob-archives=mail01-db-*')).toEqual([other]);
    expect(other).toMatch(/^mail01-db-\d/);
  });
});
