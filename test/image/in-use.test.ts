import * as fs from 'node:fs';
import * as net from 'node:net';
import * as path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { spawnDetached } from '../../src/host/exec.js';
import { identify, isAlive, signalProcess, waitForEnd } from '../../src/host/process-identity.js';
import { isWrittenByQemu } from '../../src/image/image-lock.js';
import type { ImageReference } from '../../src/image/image-reference.js';
import {
  created,
  DISK_SIZE,
  loopDevices,
  overlay,
  temporaryDirectory,
  withLoopDevice,
  writeRaw,
} from '../support/images.js';
import { program, requireAll, root } from '../support/requirements.js';
import { inspect } from './open-image.js';

let directory: string;
beforeAll(async () => {
  await requireAll(program('qemu-img', 'qemu-utils'), program('qemu-nbd', 'qemu-utils'));
  directory = temporaryDirectory();
});
afterAll(() => fs.rmSync(directory, { recursive: true }));

/** Whether a server of NBD says its first word. qemu-nbd listens before it opens the image, and says it after. */
function greets(socket: string): Promise<boolean> {
  const client = net.connect(socket);
  return new Promise<boolean>((resolve) => {
    client.once('data', (greeting) => resolve(greeting.toString('latin1').startsWith('NBDMAGIC')));
    client.once('error', () => resolve(false));
    client.once('close', () => resolve(false));
  }).finally(() => client.destroy());
}

/** A QEMU process that has the image open, as a running VM would, for as long as `use` takes. */
async function whileOpen(
  image: ImageReference,
  access: 'write' | 'read',
  use: () => Promise<void>,
): Promise<void> {
  const own = fs.mkdtempSync(path.join(directory, 'nbd-'));
  const socket = path.join(own, 'socket');
  const args = [
    '--persistent',
    `--format=${image.format}`,
    `--socket=${socket}`,
    ...(access === 'read' ? ['--read-only'] : []),
  ];
  const logFile = path.join(own, 'log');
  const nbd = identify(await spawnDetached('qemu-nbd', [...args, image.path], { logFile }));
  if (nbd === undefined) throw new Error('qemu-nbd ended at once');
  try {
    while (!(await greets(socket))) {
      if (!isAlive(nbd)) throw new Error(fs.readFileSync(logFile, 'utf8'));
      await sleep(10);
    }
    await use();
  } finally {
    signalProcess(nbd, 'SIGKILL');
    await waitForEnd(nbd, 60_000);
  }
}

async function expectInUse(image: ImageReference, file: string): Promise<void> {
  const inspection = inspect(image);
  await expect(inspection).rejects.toThrow(`${file} is in use`);
  await expect(inspection).rejects.toMatchObject({ kind: 'failed', hint: expect.stringContaining('--vm=') });
}

describe('an image that a QEMU process writes to is refused', () => {
  it('raw, and free again once it has ended', async () => {
    const image = writeRaw(path.join(directory, 'disk.raw'), DISK_SIZE);
    await whileOpen(image, 'write', async () => {
      expect(await isWrittenByQemu(image.path)).toBe(true);
      await expectInUse(image, image.path);
    });
    expect(await isWrittenByQemu(image.path)).toBe(false);
    await inspect(image);
  });

  it('qcow2, also by another name', async () => {
    const image = await created(path.join(directory, 'disk.qcow2'), 'qcow2', DISK_SIZE);
    const link = path.join(directory, 'link.qcow2');
    fs.symlinkSync(image.path, link);
    await whileOpen(image, 'write', () => expectInUse({ ...image, path: link }, link));
  });

  it('its backing file', async () => {
    const base = writeRaw(path.join(directory, 'base.raw'), DISK_SIZE);
    const top = await overlay(path.join(directory, 'top.qcow2'), base);
    await whileOpen(base, 'write', () => expectInUse(top, base.path));
  });

  it('its data file', async () => {
    const data = path.join(directory, 'data');
    const file = path.join(directory, 'with-data.qcow2');
    const image = await created(file, 'qcow2', DISK_SIZE, ['-o', `data_file=${data}`]);
    await whileOpen({ path: data, format: 'raw' }, 'write', () => expectInUse(image, data));
  });

  it('a block device', async () => {
    await requireAll(root, loopDevices, program('losetup', 'mount'));
    const { path: file } = writeRaw(path.join(directory, 'loop.raw'), 1 << 20);
    await withLoopDevice(file, async (device) => {
      const image = { path: device, format: 'raw' };
      await whileOpen(image, 'write', () => expectInUse(image, device));
      await inspect(image);
      // Its lock may be on another inode, in the /dev that libvirt gives to a VM.
      await whileOpen(image, 'write', () =>
        expect(inspect(image, { held: new Set([device]) })).rejects.toThrow(`${device} is in use`),
      );
    });
  });

  it('but a file that is held already is not looked for among all locks of the host again', async () => {
    const image = writeRaw(path.join(directory, 'held.raw'), DISK_SIZE);
    await whileOpen(image, 'write', async () => {
      await inspect(image, { held: new Set([image.path]) });
      await expectInUse(image, image.path);
    });
  });

  it('but not one that is only read, as the frozen base of a running VM is', async () => {
    const base = await created(path.join(directory, 'frozen.qcow2'), 'qcow2', DISK_SIZE);
    await whileOpen(base, 'read', async () => {
      await inspect(base);
    });
    const top = await overlay(path.join(directory, 'active.qcow2'), base);
    await whileOpen(top, 'write', async () => {
      await inspect(base);
      await expectInUse(top, top.path);
    });
  });
});
