import * as fs from 'node:fs';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { run } from '../../src/host/exec.js';
import { TestChunkmount } from '../support/chunkmount.js';
import { makeImage, type TestDomain, TestLibvirt } from '../support/libvirt.js';

const MIB = 1024 * 1024;

const chunkmount = new TestChunkmount();
const image = chunkmount.path('vda.qcow2');
let libvirt: TestLibvirt;
let domain: TestDomain;

/** The header names `old`, and the VM's definition `new`, as after a template was moved. */
beforeAll(async () => {
  libvirt = await TestLibvirt.start();
  const [before, now] = [chunkmount.path('old.img'), chunkmount.path('new.img')];
  await makeImage(before, 'raw', 4 * MIB, 0x21);
  await makeImage(now, 'raw', 4 * MIB, 0x22);
  await run('qemu-img', ['create', '-q', '-f', 'qcow2', '-F', 'raw', '-b', before, image]);
  const extra = `<backingStore type='file'><format type='raw'/><source file='${now}'/><backingStore/></backingStore>`;
  const disk = { target: 'vda', path: image, format: 'qcow2', extra };
  domain = await libvirt.define('moved', [disk], { start: false });
});

afterAll(async () => {
  await chunkmount.close();
  await libvirt?.close();
});

it.each(['off', 'running', 'running --no-snapshot'])(
  'the backing file that a VM does not have is not backed up: %s',
  async (how) => {
    const running = how.startsWith('running');
    if (running && (await libvirt.virsh.state(domain.uuid)).state !== 'running')
      await libvirt.startDomain(domain.uuid);
    const more = how.endsWith('--no-snapshot') ? ['--no-snapshot'] : [];
    const { exitCode, stderr } = await chunkmount.run(['--vm=moved', `--connect=${libvirt.uri}`, ...more]);
    expect({ exitCode, stderr }).toMatchObject({
      exitCode: 1,
      stderr: expect.stringMatching(/lies on .*old\.img \(raw\), and its VM uses it on .*new\.img \(raw\)/),
    });
    expect(await chunkmount.succeed('list')).toBe('');
    expect(fs.readdirSync(chunkmount.directory).filter((file) => file.includes('.cm-'))).toEqual([]);
    expect((await libvirt.virsh.state(domain.uuid)).state).toBe(running ? 'running' : 'shut off');
  },
);
