import * as fs from 'node:fs';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { TestLibvirt } from '../support/libvirt.js';
import { build, fuseDevice, program, requireAll, root } from '../support/requirements.js';
import { AUDIT, BitmapVm, CHUNK, CHUNKS, RAW_CHUNKS } from './bitmap-vm.js';

let libvirt: TestLibvirt;
let vm: BitmapVm;

beforeAll(async () => {
  await requireAll(root, build, fuseDevice, program('qemu-img', 'qemu-utils'));
  libvirt = await TestLibvirt.start();
  vm = await BitmapVm.make(libvirt, 'mail01');
});

afterAll(async () => {
  await vm?.close();
  await libvirt?.close();
});

describe('sessions by backup jobs', () => {
  it('read all once, then what was written, and nothing when nothing was', async () => {
    await vm.full('no record of a session');
    await vm.write([3, 4, 100]);
    await vm.tracked(3);
    await vm.tracked(0);
    await vm.write([127, 0], 'vda', 65_024);
    await vm.tracked(2);
    expect(vm.images).toEqual(['vda.qcow2', 'vdb.img']);
    expect(await vm.checkpoints()).toHaveLength(1);
  });

  it('list shows the checkpoint that is kept; cleanup --kept ends it', async () => {
    const { kept } = JSON.parse(await vm.chunkmount.succeed('list', '--json'));
    expect(kept).toMatchObject([{ name: 'mail01', target: 'vda', kind: 'checkpoint' }]);
    await vm.chunkmount.succeed('cleanup', '--kept', '--vm=mail01');
    expect(await vm.checkpoints()).toEqual([]);
    await vm.full('no checkpoint was kept');
  });

  it('go on over restarts of the VM, and what is written while it is off', async () => {
    await vm.write([7]);
    await vm.virsh('destroy');
    await vm.writeOffline(9);
    await vm.virsh('start');
    await vm.write([8]);
    await vm.tracked(3);
  });

  it('see what is written while they last the next time', async () => {
    await vm.chunkmount.succeed(...vm.args());
    await vm.write([20]);
    const before = vm.sums();
    await vm.chunkmount.succeed('cleanup', '--vm=mail01');
    // Not whole: nobody read the tree, and the scanners may have been cut off.
    await vm.write([21]);
    await vm.good();
    expect(vm.sums()).not.toEqual(before);
  });

  it('--track=none and dump make no checkpoint', async () => {
    await vm.chunkmount.succeed('cleanup', '--kept', '--vm=mail01');
    await vm.good('--track=none');
    await vm.chunkmount.succeed('dump', ...vm.args().filter((arg) => !arg.startsWith('--chunk')));
    expect(await vm.checkpoints()).toEqual([]);
    expect(vm.images).toEqual(['vda.qcow2', 'vdb.img']);
    expect(fs.existsSync('/run/chunkmount') ? fs.readdirSync('/run/chunkmount') : []).toEqual([]);
  });

  it('estimate counts what was written since', async () => {
    await vm.good();
    const estimated = async () => {
      const given = ['--vm=mail01', `--connect=${libvirt.uri}`, '--chunk-size=64K', '--json'];
      const { estimates } = JSON.parse(await vm.chunkmount.succeed('estimate', ...given));
      return estimates[0].disks;
    };
    const [vda, vdb] = await estimated();
    expect(vda).toMatchObject({ tracker: 'bitmap', reason: null, read: AUDIT, send: { least: 0, most: 0 } });
    expect(vdb).toMatchObject({ tracker: null, read: RAW_CHUNKS * CHUNK });
    // Two of them in one piece of the bitmap.
    await vm.write([5, 6, 5]);
    const most = 2 * CHUNK;
    expect((await estimated())[0]).toMatchObject({ read: most + AUDIT, send: { least: 0, most } });
    await vm.tracked(2);
    await vm.virsh('destroy');
    expect((await estimated())[0]).toMatchObject({ tracker: null, send: { least: 0, most: CHUNKS * CHUNK } });
    await vm.virsh('start');
  });
});
