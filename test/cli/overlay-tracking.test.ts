import * as fs from 'node:fs';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { loopDevices, withLoopDevice } from '../support/images.js';
import { fuseDevice, program, requireAll, root } from '../support/requirements.js';
import { AUDIT, CHUNK, KeptOverlayVm, SIZE } from './kept-overlay-vm.js';

const CHUNKS = SIZE / CHUNK;

let vm: KeptOverlayVm;

beforeAll(async () => {
  const programs = [program('qemu-img', 'qemu-utils'), program('xxhsum', 'xxhash')];
  await requireAll(root, fuseDevice, loopDevices, ...programs);
  vm = await KeptOverlayVm.start();
});
afterAll(() => vm?.close());
beforeEach(() => vm.fresh());
afterEach(() => vm.dispose());

describe('--keep-overlay', () => {
  it('reads only what changed, session after session, and cleanup --kept gives the VM its images back', async () => {
    expect(await vm.good()).toMatchObject({ kept: 0, read: 2 * SIZE });
    await vm.expectOnOverlays();

    await vm.write('vda', 3, 0x31);
    await vm.write('vda', 100, 0x32, 2 * CHUNK);
    await vm.write('vdb', 7, 0x33);
    const second = await vm.good();
    expect(second).toMatchObject({ kept: 2 * CHUNKS - 4, read: (4 + second.audited) * CHUNK });
    // A sample that would be one of the chunks that changed is none: at most one for each.
    expect(second.audited).toBeGreaterThanOrEqual(2 * AUDIT - 4);
    expect(second.audited).toBeLessThanOrEqual(2 * AUDIT);
    expect(Object.fromEntries(second.why)).toEqual({
      vda: expect.stringContaining(`tracker overlay knows what changed: ${3 * CHUNK} bytes`),
      vdb: expect.stringContaining(`tracker overlay knows what changed: ${CHUNK} bytes`),
    });
    await vm.expectOnOverlays();

    await vm.write('vda', 3, 0x41);
    await vm.libvirt.guestDiscard(vm.domain, 'vda', { offset: 20 * CHUNK, length: 2 * CHUNK });
    await vm.libvirt.guestDiscard(vm.domain, 'vdb', { offset: 30 * CHUNK, length: CHUNK });
    const third = await vm.good();
    expect(third).toMatchObject({ kept: 2 * CHUNKS - 4, read: (1 + third.audited) * CHUNK });
    expect(third.audited).toBeGreaterThanOrEqual(2 * AUDIT - 1);
    expect(await vm.good()).toMatchObject({ kept: 2 * CHUNKS, read: 2 * AUDIT * CHUNK });

    await vm.write('vdb', 9, 0x51);
    expect(await vm.cleanup('--kept')).toMatchObject({ exitCode: 0 });
    await vm.expectOriginal();
    await vm.verify('vda', 3, 0x41);
    await vm.verify('vda', 20, 0);
    await vm.verify('vdb', 9, 0x51);
  });

  it('restore does not overwrite an image that is a part of a disk only, and does when it is the disk', async () => {
    await vm.only('vda');
    const image = vm.disks[0]!.path;
    const copy = vm.chunkmount.path('copy');
    const copying = [
      'run',
      ...vm.args('--keep-overlay'),
      '--',
      'sh',
      '-c',
      `cp -r "$CHUNKMOUNT_TREE" ${copy}`,
    ];
    expect(await vm.chunkmount.run(copying)).toMatchObject({ exitCode: 0 });
    const before = fs.readFileSync(image);
    const restore = (how: string) => vm.chunkmount.run(['restore', copy, `--to=${image}`, how]);

    for (const how of ['--delta', '--force']) {
      expect(await restore(how)).toMatchObject({
        exitCode: 1,
        stderr: expect.stringContaining(`cleanup --kept --vm=${vm.name}`),
      });
    }
    await vm.libvirt.virsh.call('destroy', ['--domain', vm.domain.uuid]);
    expect(await restore('--delta')).toMatchObject({
      exitCode: 1,
      stderr: expect.stringContaining(`${image} is only a part of the disk of ${vm.name}`),
    });
    expect(fs.readFileSync(image).equals(before)).toBe(true);

    expect(await vm.cleanup('--kept')).toMatchObject({ exitCode: 0 });
    expect(await restore('--delta')).toMatchObject({ exitCode: 0 });
    expect(fs.readFileSync(image).equals(before)).toBe(true);
  });

  it('goes on from session to session on a block device, too', async () => {
    await vm.only('vda');
    const overlays = vm.chunkmount.path('overlays');
    fs.mkdirSync(overlays);
    await withLoopDevice(vm.disks[0]!.path, async (device) => {
      await vm.libvirt.remove(vm.domain);
      vm.domain = await vm.libvirt.define(vm.name, [{ ...vm.disks[0]!, path: device, type: 'block' }]);
      const options = ['--snapshot=overlay', `--overlay-dir=${overlays}`];
      await vm.good(...options);
      for (const chunk of [3, 50]) {
        await vm.write('vda', chunk, 0x31);
        expect(await vm.good(...options)).toMatchObject({ kept: CHUNKS - 1 });
      }
      expect(await vm.cleanup('--kept')).toMatchObject({ exitCode: 0 });
      expect(await vm.paths()).toEqual({ now: [device], next: [device] });
      expect(fs.readdirSync(overlays)).toEqual([]);
      await vm.libvirt.remove(vm.domain);
    });
    vm.domain = await vm.libvirt.define(vm.name, vm.disks);
    await vm.verify('vda', 50, 0x31);
  });
});
