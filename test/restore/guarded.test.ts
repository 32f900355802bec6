import * as fs from 'node:fs';
import { execa } from 'execa';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import type { RestoreOptions } from '../../src/commands/restore.js';
import { run } from '../../src/host/exec.js';
import { takePlace } from '../../src/restore/take-place.js';
import { examineTarget } from '../../src/restore/target.js';
import { lockTarget } from '../../src/restore/target-lock.js';
import { TestFileSystem } from '../support/file-systems.js';
import { loopDevices, withLoopDevice } from '../support/images.js';
import { root as asRoot, build, program, requireAll } from '../support/requirements.js';
import { built, errorOf, RecordingContext } from './built.js';
import { CHUNK, DEMO_SIZE, demoContent, demoTree } from './demo-tree.js';

type Module = typeof import('../../src/commands/restore.js');
let runRestore: Module['runRestore'];
let btrfs: TestFileSystem;

beforeAll(async () => {
  await requireAll(build, asRoot, loopDevices, program('losetup', 'mount'));
  await requireAll(program('qemu-system-x86_64', 'qemu-system-x86'));
  ({ runRestore } = await built<Module>('commands/restore'));
  btrfs = await TestFileSystem.make('btrfs');
});
afterAll(() => btrfs?.close());

const DEFAULTS = { force: false, delta: false, keepGoing: false };

async function restore(given: Partial<RestoreOptions> & Pick<RestoreOptions, 'tree' | 'to'>): Promise<void> {
  await runRestore({ ...DEFAULTS, ...given }, new RecordingContext(true));
}

/** A virtual machine that has an image as its disk, and does not run. Ends it when `use` has ended. */
async function whileInVm(format: 'raw' | 'qcow2', file: string, use: () => Promise<void>): Promise<void> {
  const args = ['-S', '-machine', 'q35', '-m', '64', '-nodefaults', '-display', 'none', '-qmp', 'stdio'];
  const drive = `if=virtio,format=${format},file=${file}`;
  const qemu = execa('qemu-system-x86_64', [...args, '-drive', drive], { reject: false });
  try {
    // It greets before its disks are there, and answers afterwards.
    qemu.stdin.write('{"execute":"qmp_capabilities"}\n');
    await new Promise<void>((resolve) => {
      qemu.stdout.on('data', (text) => {
        if (String(text).includes('"return"')) resolve();
      });
    });
    await use();
  } finally {
    qemu.kill();
    await qemu;
  }
}

const IN_USE = 'is in use by a running VM';
const LIES_ON_IT = 'is being read, by a running VM whose image lies on it';
const WAYS = [{ delta: true }, { force: true }] as const;

/** Expects that the image is refused while a VM has it, or an overlay on it, and is written afterwards. */
async function expectRefused(
  image: string,
  { seenByVmAs = image, overlay }: { seenByVmAs?: string; overlay?: string },
): Promise<void> {
  const { root } = demoTree();
  const file = overlay ?? seenByVmAs;
  if (overlay !== undefined)
    await run('qemu-img', ['create', '-q', '-f', 'qcow2', '-F', 'raw', '-b', seenByVmAs, overlay]);
  await whileInVm(overlay === undefined ? 'raw' : 'qcow2', file, async () => {
    for (const way of WAYS) {
      const { message } = await errorOf(restore({ tree: root, to: image, ...way }), 'failed');
      expect(message).toContain(overlay === undefined ? IN_USE : LIES_ON_IT);
    }
  });
  await restore({ tree: root, to: image, delta: true });
  expect(fs.readFileSync(image).subarray(0, DEMO_SIZE).equals(demoContent())).toBe(true);
}

describe('what a running VM writes to, or what its image lies on, is refused', () => {
  const zeros = Buffer.alloc(DEMO_SIZE);

  it.each([false, true])('a file; as a base: %s', async (lies) => {
    const { beside } = demoTree();
    fs.writeFileSync(beside('disk.img'), zeros);
    await expectRefused(beside('disk.img'), lies ? { overlay: beside('overlay.qcow2') } : {});
  });

  it.each([false, true])('a file on Btrfs; as a base: %s', async (lies) => {
    const file = `${btrfs.directory}/disk${lies}.img`;
    fs.writeFileSync(file, zeros);
    await expectRefused(file, lies ? { overlay: `${btrfs.directory}/overlay.qcow2` } : {});
  });

  it.each([false, true])(
    'a block device, by another node, as the /dev that libvirt gives a VM has; as a base: %s',
    async (lies) => {
      const { beside } = demoTree();
      fs.writeFileSync(beside('backing'), Buffer.alloc(Math.ceil(DEMO_SIZE / CHUNK) * CHUNK));
      await withLoopDevice(beside('backing'), async (device) => {
        const { rdev } = fs.statSync(device);
        const numbers = [rdev >> 8, rdev & 0xff].map(String);
        await run('mknod', [beside('node'), 'b', ...numbers]);
        await expectRefused(device, {
          seenByVmAs: beside('node'),
          ...(lies ? { overlay: beside('overlay.qcow2') } : {}),
        });
      });
    },
  );
});

describe('the place of an image, when the restore is done,', () => {
  /** A restored image and its place, which was looked at when `before` was there. */
  function begun(before: string | undefined) {
    const { beside } = demoTree();
    const [part, place] = [beside('.disk.img.part'), beside('disk.img')];
    if (before !== undefined) fs.writeFileSync(place, before, { mode: 0o640 });
    const target = examineTarget(place);
    fs.writeFileSync(part, 'restored', { mode: 0o600 });
    return { part, place, target };
  }

  async function expectUntouched(
    { part, place, target }: ReturnType<typeof begun>,
    content: string,
    message: string,
  ): Promise<void> {
    await expect(takePlace(part, target)).rejects.toThrow(message);
    expect(fs.readFileSync(place, 'utf8')).toBe(content);
    expect(fs.readFileSync(part, 'utf8')).toBe('restored');
  }

  it('is taken', async () => {
    const { part, place, target } = begun(undefined);
    await takePlace(part, target);
    expect(fs.readFileSync(place, 'utf8')).toBe('restored');
    expect(fs.existsSync(part)).toBe(false);
  });

  it('is taken from the image that was there, with its mode', async () => {
    const { part, place, target } = begun('old');
    await takePlace(part, target);
    expect(fs.readFileSync(place, 'utf8')).toBe('restored');
    expect(fs.statSync(place).mode & 0o777).toBe(0o640);
  });

  it('is taken when the image that was there is gone', async () => {
    const { part, place, target } = begun('old');
    fs.rmSync(place);
    await takePlace(part, target);
    expect(fs.readFileSync(place, 'utf8')).toBe('restored');
  });

  it('is left to a file that has appeared meanwhile', async () => {
    const one = begun(undefined);
    fs.writeFileSync(one.place, 'somebody else');
    await expectUntouched(one, 'somebody else', 'has appeared while it was being restored');
  });

  it('is left to a file that was put there instead', async () => {
    const one = begun('old');
    fs.renameSync(one.place, `${one.place}.away`);
    fs.writeFileSync(one.place, 'somebody else');
    await expectUntouched(one, 'somebody else', 'was replaced by another file');
  });

  it('is left to a link that was put there instead', async () => {
    const one = begun('old');
    fs.renameSync(one.place, `${one.place}.away`);
    fs.symlinkSync(`${one.place}.away`, one.place);
    await expectUntouched(one, 'old', 'ELOOP');
    expect(fs.lstatSync(one.place).isSymbolicLink()).toBe(true);
  });

  it('is left to a VM that was started meanwhile', async () => {
    const one = begun('x'.repeat(512));
    await whileInVm('raw', one.place, () => expectUntouched(one, 'x'.repeat(512), IN_USE));
  });

  it('is left to another restore that writes there', async () => {
    const one = begun('old');
    const fd = fs.openSync(one.place, 'r+');
    await lockTarget(fd, one.place);
    await expectUntouched(one, 'old', 'another command is restoring to');
    fs.closeSync(fd);
  });
});

it('two cannot restore to one file, or one block device, at once', async () => {
  const { root, beside } = demoTree();
  const size = Math.ceil(DEMO_SIZE / CHUNK) * CHUNK;
  fs.writeFileSync(beside('disk.img'), Buffer.alloc(DEMO_SIZE));
  fs.writeFileSync(beside('backing'), Buffer.alloc(size));
  await withLoopDevice(beside('backing'), async (device) => {
    for (const to of [beside('disk.img'), device]) {
      const fd = fs.openSync(to, 'r+');
      await lockTarget(fd, to);
      await errorOf(restore({ tree: root, to, delta: true }), 'locked');
      fs.closeSync(fd);
      await restore({ tree: root, to, delta: true });
    }
  });
});

/** How long another program has a target locked. */
const PROBING_MS = 1000;

it('a block device is waited for while udev looks at it, a file is not', async () => {
  const { root, beside } = demoTree();
  fs.writeFileSync(beside('disk.img'), '');
  const [udev, ours] = [fs.openSync(beside('disk.img'), 'r+'), fs.openSync(beside('disk.img'), 'r+')];
  await lockTarget(udev, 'udev');
  await expect(lockTarget(ours, 'disk.img')).rejects.toMatchObject({ kind: 'locked' });
  setTimeout(() => fs.closeSync(udev), PROBING_MS);
  await lockTarget(ours, 'disk.img', { device: true });
  fs.closeSync(ours);
  fs.writeFileSync(beside('backing'), Buffer.alloc(Math.ceil(DEMO_SIZE / CHUNK) * CHUNK));
  await withLoopDevice(beside('backing'), async (device) => {
    const looking = fs.openSync(device, 'r');
    await lockTarget(looking, 'udev');
    setTimeout(() => fs.closeSync(looking), PROBING_MS);
    await restore({ tree: root, to: device, delta: true });
  });
});
