import * as fs from 'node:fs';
import { afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { TestChunkmount } from '../support/chunkmount.js';
import { noise, qemuImg } from '../support/images.js';
import { writePattern } from '../support/libvirt.js';
import { fuseDevice, program, requireAll, root } from '../support/requirements.js';
import { expectError } from './expectations.js';

const MIB = 1024 * 1024;
const WRITE = { offset: 0, length: 4096, pattern: 0x5a };

describe('what an image lies on, while its tree is read', () => {
  let chunkmount: TestChunkmount;
  let below: string;
  let image: string;

  beforeAll(() => requireAll(root, fuseDevice, program('qemu-img', 'qemu-utils')));
  beforeEach(() => {
    chunkmount = new TestChunkmount();
    below = chunkmount.path('below.raw');
    image = chunkmount.path('disk.qcow2');
  });
  afterEach(() => chunkmount.close());

  const makers = {
    'a backing file': async () => {
      fs.writeFileSync(below, noise(MIB, 1));
      await qemuImg('create', '-f', 'qcow2', '-F', 'raw', '-b', below, image);
    },
    'a data file': async () => {
      await qemuImg('create', '-f', 'qcow2', '-o', `data_file=${below}`, image, String(MIB));
    },
  };

  it.each(Object.entries(makers))('%s cannot be written by QEMU', async (_, make) => {
    await make();
    await chunkmount.succeed('mount', `--image=${image}`, '--name=demo');
    await expect(writePattern(below, 'raw', WRITE)).rejects.toThrow(/lock/);
    await chunkmount.succeed('cleanup', '--name=demo');
    await writePattern(below, 'raw', WRITE);
  });

  it.each(Object.entries(makers))('%s that others wrote makes no good backup', async (_, make) => {
    await make();
    await chunkmount.succeed('mount', `--image=${image}`, '--name=demo');
    const fd = fs.openSync(below, 'r+');
    fs.writeSync(fd, noise(4096, 2), 0, 4096, 0);
    fs.closeSync(fd);
    const { message } = expectError(await chunkmount.run(['cleanup', '--name=demo']), 1);
    expect(message).toContain(`the frozen image ${below} was written`);
  });
});
