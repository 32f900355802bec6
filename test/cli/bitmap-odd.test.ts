import * as fs from 'node:fs';
import * as path from 'node:path';
import { execa } from 'execa';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { qcow2Info } from '../../src/image/qcow2-info.js';
import { TestLibvirt } from '../support/libvirt.js';
import { build, fuseDevice, program, requireAll, root } from '../support/requirements.js';
import { BitmapVm, CHUNK } from './bitmap-vm.js';

let libvirt: TestLibvirt;
let vm: BitmapVm;

/** Bitmaps that came back with a copy of the image: nothing tells whose they are. */
const stale = new Set<string>();

/** The VM is off during `work`. */
async function whileOff(work: () => unknown): Promise<void> {
  await vm.virsh('destroy');
  await work();
  await vm.virsh('start');
}

/** Another one's disk-only snapshot, into which the guest writes, and which is merged again. */
async function overlayMeanwhile(): Promise<void> {
  const overlay = path.join(vm.directory, 'other.qcow2');
  const spec = [`vda,snapshot=external,file=${overlay}`, 'vdb,snapshot=no'];
  await vm.virsh(
    'snapshot-create-as',
    '--no-metadata',
    '--disk-only',
    ...spec.flatMap((one) => ['--diskspec', one]),
  );
  await vm.write([40]);
  const merge = ['--path', 'vda', '--active', '--pivot', '--wait', '--base', vm.vda, '--top', overlay];
  await vm.virsh('blockcommit', ...merge);
  fs.rmSync(overlay);
}

/** What happens between two sessions, and what the second one says. Where a number is given it still knows what was written. */
const CASES: readonly (readonly [string, number | RegExp, () => Promise<unknown>])[] = [
  ['nothing', 0, async () => {}],
  ["another one's overlay was there and was merged", 1, overlayMeanwhile],
  [
    'the checkpoint was deleted',
    /heckpoint/,
    async () => {
      await vm.virsh('checkpoint-delete', '--checkpointname', (await vm.checkpoints())[0]!);
    },
  ],
  [
    'the VM was undefined and defined again',
    /heckpoint/,
    () =>
      whileOff(async () => {
        const definition = await libvirt.virsh.definition(vm.domain.uuid);
        await vm.virsh('undefine', '--checkpoints-metadata');
        await libvirt.virsh.define(definition);
      }),
  ],
  [
    'QEMU was killed',
    /bitmap/,
    async () => {
      await libvirt.killQemu(vm.domain);
      await vm.virsh('start');
    },
  ],
  [
    'QEMU was killed while on an overlay, which was merged without it',
    1,
    async () => {
      const overlay = path.join(vm.directory, 'other.qcow2');
      const spec = [`vda,snapshot=external,file=${overlay}`, 'vdb,snapshot=no'];
      const definition = await libvirt.virsh.definition(vm.domain.uuid);
      await vm.virsh(
        'snapshot-create-as',
        '--no-metadata',
        '--disk-only',
        ...spec.flatMap((one) => ['--diskspec', one]),
      );
      await vm.write([41]);
      await libvirt.killQemu(vm.domain);
      await execa('qemu-img', ['commit', '-q', '-f', 'qcow2', overlay]);
      fs.rmSync(overlay);
      await libvirt.virsh.define(definition);
      await vm.virsh('start');
    },
  ],
  ['the image was replaced by a copy', /its image is not the one/, () => whileOff(() => vm.replaceImage())],
  [
    'an older copy was written over the image',
    /bitmap|heckpoint/,
    async () => {
      const copy = `${vm.vda}.copy`;
      const content = Buffer.from(vm.content.vda);
      await whileOff(() => fs.copyFileSync(vm.vda, copy));
      for (const { name } of (await qcow2Info(copy)).bitmaps) stale.add(name);
      await vm.write([50]);
      await vm.tracked(1);
      await whileOff(() => execa('dd', [`if=${copy}`, `of=${vm.vda}`, 'bs=1M', 'conv=notrunc']));
      fs.rmSync(copy);
      content.copy(vm.content.vda);
    },
  ],
  [
    'the copy that was written over it is of the same checkpoint',
    1,
    async () => {
      const copy = `${vm.vda}.copy`;
      await vm.write([51]);
      await whileOff(() => fs.copyFileSync(vm.vda, copy));
      const content = Buffer.from(vm.content.vda);
      await vm.write([52, 53]);
      await whileOff(() => execa('dd', [`if=${copy}`, `of=${vm.vda}`, 'bs=1M', 'conv=notrunc']));
      fs.rmSync(copy);
      content.copy(vm.content.vda);
    },
  ],
  ['it was backed up by an overlay', /no checkpoint|knows nothing/, () => vm.good('--snapshot=overlay')],
  [
    'the clock was set back',
    /clock was set back/,
    async () => {
      const file = vm.indexPath('vda.tracking.v1.json');
      const record = JSON.parse(fs.readFileSync(file, 'utf8'));
      fs.writeFileSync(file, JSON.stringify({ ...record, fullScan: Date.now() + 3_600_000 }));
    },
  ],
  ['the index is gone', /index is gone/, async () => fs.rmSync(vm.indexPath('vda.v1'))],
  [
    'index and record are older than the checkpoint',
    /no checkpoint was kept/,
    async () => {
      const saved = `${vm.chunkmount.directory}/saved`;
      fs.cpSync(vm.indexPath(''), saved, { recursive: true });
      await vm.write([60]);
      await vm.tracked(1);
      fs.cpSync(saved, vm.indexPath(''), { recursive: true });
      fs.rmSync(saved, { recursive: true });
    },
  ],
  [
    'a session was cut off, and what it found out is not used',
    1,
    async () => {
      await vm.write([61]);
      await vm.chunkmount.succeed(...vm.args('--full-scan', '--bwlimit=64K'));
      await vm.chunkmount.run(['cleanup', '--vm=mail01']);
    },
  ],
  [
    'another one backs it up meanwhile',
    1,
    async () => {
      await vm.write([62]);
      const [scratch, xml] = ['other.scratch', 'other.xml'].map((name) => path.join(libvirt.directory, name));
      const disk = `<disk name='vda' backup='yes' type='file'><driver type='qcow2'/><scratch file='${scratch}'/></disk>`;
      const server = `<server transport='unix' socket='${libvirt.directory}/other.sock'/>`;
      fs.writeFileSync(
        xml!,
        `<domainbackup mode='pull'>${server}<disks>${disk}<disk name='vdb' backup='no'/></disks></domainbackup>`,
      );
      await vm.virsh('backup-begin', '--backupxml', xml!);
      const refused = await vm.session();
      expect(refused).toMatchObject({ exitCode: 1, stderr: expect.stringContaining('a job') });
      // It is not ours, and goes on.
      expect(await vm.virsh('backup-dumpxml')).toContain('other.sock');
      await vm.virsh('domjobabort');
    },
  ],
];

beforeAll(async () => {
  await requireAll(root, build, fuseDevice, program('qemu-img', 'qemu-utils'));
  libvirt = await TestLibvirt.start();
  vm = await BitmapVm.make(libvirt, 'mail01');
  await vm.good();
});

afterAll(async () => {
  await vm?.close();
  await libvirt?.close();
});

it('an image with an internal snapshot is read as a whole, and can be set back when no checkpoint is kept', async () => {
  await whileOff(() => execa('qemu-img', ['snapshot', '-c', 'inside', vm.vda]));
  await vm.good();
  const then = { vda: Buffer.from(vm.content.vda) };
  await vm.write([70]);
  await vm.full('internal snapshots');
  await vm.chunkmount.succeed('cleanup', '--kept', '--vm=mail01');
  await whileOff(() => execa('qemu-img', ['snapshot', '-a', 'inside', vm.vda]));
  then.vda.copy(vm.content.vda);
  await vm.full('internal snapshots');
  await vm.chunkmount.succeed('cleanup', '--kept', '--vm=mail01');
  await whileOff(() => execa('qemu-img', ['snapshot', '-d', 'inside', vm.vda]));
  await vm.good();
});

it.each(CASES)('%s: the tree is right', async (_, expected, happens) => {
  await happens();
  await vm.write([1, 2]);
  if (typeof expected === 'number') await vm.tracked(2 + expected);
  else await vm.full(expected);
  expect(vm.images).toEqual(['vda.qcow2', 'vdb.img']);
  // What was broken was mended: one checkpoint, and no other bitmap in the image.
  const [checkpoint, ...others] = await vm.checkpoints();
  expect(others).toEqual([]);
  // Bitmaps that QEMU has in memory are not there yet.
  const { bitmaps } = await qcow2Info(vm.vda);
  expect(bitmaps.filter(({ name }) => name !== checkpoint && !stale.has(name))).toEqual([]);
});

it('a disk that was resized is read as a whole', async () => {
  await vm.good();
  await vm.good();
  await vm.virsh('blockresize', '--path', 'vda', '--size', `${(vm.content.vda.length + CHUNK) / 1024}K`);
  vm.content.vda = Buffer.concat([vm.content.vda, Buffer.alloc(CHUNK)]);
  const session = await vm.good();
  expect(session.why).toContain('the disk was resized');
  expect((await vm.good()).why).toContain('tracker bitmap knows what changed: 0 bytes');
});
