import * as fs from 'node:fs';
import * as path from 'node:path';
import { execa } from 'execa';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { TestChunkmount } from '../support/chunkmount.js';
import { loopDevices, noise, withLoopDevice } from '../support/images.js';
import { eventually, TestLibvirt } from '../support/libvirt.js';
import { build, fuseDevice, program, requireAll, root } from '../support/requirements.js';

const CHUNK = 64 * 1024;
const SIZE = 512 * CHUNK;

const chunkmount = new TestChunkmount();
let libvirt: TestLibvirt;
let base: string;

beforeAll(async () => {
  await requireAll(root, build, fuseDevice, loopDevices, program('qemu-nbd', 'qemu-utils'));
  libvirt = await TestLibvirt.start();
  base = path.join(libvirt.directory, 'base.img');
});
afterAll(async () => {
  await chunkmount.close();
  await libvirt?.close();
});

/** What a session said of the tracking of its disk; the tree has to be the disk. */
async function session(name: string): Promise<string> {
  const given = [`--vm=${name}`, `--connect=${libvirt.uri}`, `--chunk-size=${CHUNK}`, '--snapshot=pull'];
  const script = 'cat "$CHUNKMOUNT_TREE"/vda/*/* | cmp - "$0"';
  const command = ['run', ...given, '--debug', '--', 'sh', '-c', script, base];
  const { exitCode, stdout, stderr } = await chunkmount.run(command);
  expect({ exitCode, stdout, stderr }).toMatchObject({ exitCode: 0, stdout: '' });
  return stderr;
}

/** Two sessions of a VM on an overlay of `below`, which is written between them while the VM is off. */
async function sessions(name: string, below: string, written: (at: number) => void): Promise<string> {
  fs.writeFileSync(base, noise(SIZE, 1));
  const overlay = path.join(libvirt.directory, `${name}.qcow2`);
  await execa('qemu-img', ['create', '-q', '-f', 'qcow2', '-F', 'raw', '-b', below, overlay]);
  const domain = await libvirt.define(name, [{ target: 'vda', path: overlay, format: 'qcow2' }]);
  try {
    await session(name);
    await libvirt.virsh.call('destroy', ['--domain', name]);
    written(5 * CHUNK);
    await libvirt.startDomain(name);
    return await session(name);
  } finally {
    await chunkmount.run(['cleanup', '--kept', `--vm=${name}`]);
    await libvirt.remove(domain);
  }
}

function write(file: string, at: number): void {
  const fd = fs.openSync(file, 'r+');
  fs.writeSync(fd, Buffer.alloc(CHUNK, 'written'), 0, CHUNK, at);
  fs.fsyncSync(fd);
  fs.closeSync(fd);
}

it('a block device below the image is not trusted: its times say nothing', async () => {
  fs.writeFileSync(base, noise(SIZE, 1));
  const said = await withLoopDevice(base, (device) => sessions('onloop', device, (at) => write(device, at)));
  expect(said).toMatch(/tracker bitmap knows nothing: its backing file \/dev\/loop\d+ is a block device/);
  expect(said).toContain('disk vda: all of it is read');
});

it('what is below the image on the network is not trusted', async () => {
  fs.writeFileSync(base, noise(SIZE, 1));
  const socket = path.join(libvirt.directory, 'nbd');
  const server = execa(
    'qemu-nbd',
    ['--format=raw', '--persistent', '--shared=0', `--socket=${socket}`, base],
    {
      reject: false,
    },
  );
  try {
    await eventually(async () => fs.existsSync(socket));
    const said = await sessions('onnetwork', `nbd+unix:///?socket=${socket}`, (at) => write(base, at));
    expect(said).toContain('tracker bitmap knows nothing: what its image lies on is not on this host');
    expect(said).toContain('disk vda: all of it is read');
  } finally {
    server.kill();
    await server;
  }
});
