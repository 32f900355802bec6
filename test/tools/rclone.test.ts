import * as path from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { program } from '../support/requirements.js';
import { BackedUpVm, CHUNKS, EXAMPLES } from './backed-up-vm.js';
import { S3Server, swift } from './s3-server.js';

/** Each object takes Swift its time: chunks as large as four. */
const OPTIONS = ['--chunk-size=64K'];
const chunkOf = (chunk: number) => Math.floor(chunk / 4);

const vm = new BackedUpVm();
let s3: S3Server;

describe('examples/rclone', () => {
  beforeAll(async () => {
    await vm.start(program('rclone'), swift);
    s3 = await S3Server.start(vm.path('s3'));
  });
  afterAll(async () => {
    await s3?.close();
    await vm.close();
  });

  it.each([
    ['object storage', 's3:backup'],
    ['a directory', vm.path('remote')],
  ])('keeps a copy in %s: what did not change is not read; it comes back', async (_, REMOTE) => {
    // The proxy's certificates of some machines are more than this rclone can do.
    const env = { ...s3.env, REMOTE, KEEP: '1', RCLONE_CONFIG: vm.path('rclone.conf'), AWS_CA_BUNDLE: '' };
    const backup = () => vm.run([path.join(EXAMPLES, 'rclone/rclone-daily'), 'mail01', ...OPTIONS], { env });
    const copy = (from: string, to: string) =>
      vm.run(['rclone', 'copy', `${REMOTE}/mail01/${from}`, to], { env });

    const first = await vm.content();
    await backup();
    await backup();
    const changed = await vm.change();
    await backup();
    expect(vm.chunksRead()).toEqual([chunkOf(CHUNKS - 1) + 1, 0, new Set(changed.map(chunkOf)).size]);

    const target = vm.path(`restored-${path.basename(REMOTE)}`);
    await copy('latest', target);
    await vm.expectRestorable(target, await vm.content());
    // Of the two runs that replaced something, the last one is kept: what it replaced makes the copy of before whole.
    const names = (await vm.run(['rclone', 'lsf', '--dirs-only', `${REMOTE}/mail01`], { env }))
      .split('\n')
      .sort();
    expect(names).toEqual(['latest/', expect.stringMatching(/^replaced-/)]);
    await copy(names[1]!, target);
    await vm.expectRestorable(target, first);
  });
});
