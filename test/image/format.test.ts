import * as fs from 'node:fs';
import * as path from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { ChunkmountError } from '../../src/errors.js';
import { checkImageFormat, IMAGE_FORMATS, imageFormat } from '../../src/image/format.js';
import { created, loopDevices, temporaryDirectory, withLoopDevice, writeRaw } from '../support/images.js';
import { program, requireAll, root } from '../support/requirements.js';

let directory: string;
beforeAll(() => {
  directory = temporaryDirectory();
});
afterAll(() => fs.rmSync(directory, { recursive: true }));

function errorOf(action: () => unknown): ChunkmountError {
  try {
    action();
  } catch (error) {
    if (error instanceof ChunkmountError) return error;
    throw error;
  }
  throw new Error('nothing was thrown');
}

describe('format of an image', () => {
  it.each([
    ['disk.raw', 'raw'],
    ['disk.img', 'raw'],
    ['disk.qcow2', 'qcow2'],
    ['disk.vmdk', 'vmdk'],
    ['disk.vdi', 'vdi'],
    ['disk.vhdx', 'vhdx'],
    ['DISK.QCOW2', 'qcow2'],
    ['old.raw.qcow2', 'qcow2'],
    ['dir.raw/disk.vdi', 'vdi'],
  ])('%s is %s by its name', (name, format) => {
    expect(imageFormat(`/nowhere/${name}`)).toBe(format);
  });

  it.each(['disk', 'disk.', '.qcow2', 'disk.iso', 'dir.raw/disk', 'disk.constructor', 'disk.qcow2 '])(
    '%j has none by its name: a usage error with a hint',
    (name) => {
      const error = errorOf(() => imageFormat(`/nowhere/${name}`));
      expect(error.kind).toBe('usage');
      expect(error.message).toContain(`/nowhere/${name}`);
      expect(error.hint).toContain('--format=');
    },
  );

  it('--format wins over the name, and is one of a list', () => {
    expect(imageFormat('/nowhere/disk.raw', 'qcow2')).toBe('qcow2');
    for (const format of IMAGE_FORMATS) expect(checkImageFormat(format)).toBe(format);
    for (const format of ['', 'QCOW2', 'nbd', 'luks', 'json:', 'host_device', 'toString']) {
      const error = errorOf(() => imageFormat('/nowhere/disk.raw', format));
      expect(error.kind).toBe('usage');
      expect(error.hint).toContain('qcow2');
    }
  });

  it('the content is never asked', async () => {
    const qcow2 = await created(path.join(directory, 'really-qcow2'), 'qcow2', 1 << 20);
    expect(errorOf(() => imageFormat(qcow2.path)).kind).toBe('usage');
    fs.renameSync(qcow2.path, path.join(directory, 'disk.raw'));
    expect(imageFormat(path.join(directory, 'disk.raw'))).toBe('raw');
  });

  it('a block device is raw unless told otherwise', async () => {
    await requireAll(root, loopDevices, program('losetup', 'mount'));
    await withLoopDevice(writeRaw(path.join(directory, 'loop'), 1 << 20).path, async (device) => {
      expect(imageFormat(device)).toBe('raw');
      expect(imageFormat(device, 'qcow2')).toBe('qcow2');
      const link = path.join(directory, 'link.qcow2');
      fs.symlinkSync(device, link);
      expect(imageFormat(link)).toBe('raw');
    });
  });
});
