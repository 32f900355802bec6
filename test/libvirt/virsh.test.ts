import * as fs from 'node:fs';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { ChunkmountError } from '../../src/errors.js';
import { run } from '../../src/host/exec.js';
import { loadDomain, loadInactive } from '../../src/libvirt/load-domain.js';
import { Virsh } from '../../src/libvirt/virsh.js';
import { openDescriptors } from '../support/descriptors.js';
import { makeImage, type TestDomain, TestLibvirt } from '../support/libvirt.js';

const MIB = 1024 * 1024;

let libvirt: TestLibvirt;
let directory: string;
let running: TestDomain;

beforeAll(async () => {
  libvirt = await TestLibvirt.start();
  directory = `${libvirt.directory}/an "odd", <&> place's`;
  fs.mkdirSync(directory);
  await makeImage(`${directory}/a.qcow2`, 'qcow2', 4 * MIB);
  await makeImage(`${directory}/b.img`, 'raw', 4 * MIB);
  running = await libvirt.define('running one', [
    { target: 'vda', path: `${directory}/a.qcow2`, format: 'qcow2' },
    { target: 'vdb', path: `${directory}/b.img`, format: 'raw' },
  ]);
});

afterAll(() => libvirt?.close());

describe('a running domain', () => {
  it('is loaded with the paths of its disks as they are', async () => {
    const domain = await loadDomain(libvirt.virsh, 'running one');
    expect(domain).toMatchObject({ uuid: running.uuid, state: 'running', active: true, persistent: true });
    expect(
      domain.disks.map(({ target, path, format, type, backing }) => [target, path, format, type, backing]),
    ).toEqual([
      ['vda', `${directory}/a.qcow2`, 'qcow2', 'file', []],
      ['vdb', `${directory}/b.img`, 'raw', 'file', []],
    ]);
  });

  it('has an inactive definition that says nothing of what runs', async () => {
    expect(await libvirt.virsh.dumpXml(running.uuid, { inactive: true })).not.toMatch(
      /<alias|<domain[^>]* id=/,
    );
    expect((await loadInactive(libvirt.virsh, running.uuid)).active).toBe(false);
  });

  it('tells of its state, jobs and managed save', async () => {
    const { virsh } = libvirt;
    expect(await virsh.hasDomainJob(running.uuid)).toBe(false);
    expect(await virsh.hasManagedSave(running.uuid)).toBe(false);
    expect(await virsh.blockJob(running.uuid, 'vda')).toBeUndefined();
    await virsh.suspend(running.uuid);
    expect((await virsh.state(running.uuid)).state).toBe('paused');
    await virsh.resume(running.uuid);
    expect((await virsh.state(running.uuid)).state).toBe('running');
  });
});

it('a volume is looked for in its own pool, and is nowhere if that is not active', async () => {
  const virsh = (...args: string[]) => run('virsh', ['--connect', libvirt.uri, ...args]);
  for (const pool of ['one', 'two', 'off']) {
    const target = `${libvirt.directory}/pool-${pool}`;
    fs.mkdirSync(target);
    await makeImage(`${target}/disk.img`, 'raw', MIB);
    await virsh('pool-create-as', pool, 'dir', '--target', target);
  }
  const xml = await libvirt.virsh.definition(running.uuid);
  try {
    const pools = ['two', 'one', 'two', 'off'];
    const disk = (pool: string, index: number) =>
      `<disk type='volume'><driver name='qemu' type='raw'/><source pool='${pool}' volume='disk.img'/><target dev='vd${'wxyz'[index]}'/></disk>`;
    await libvirt.virsh.define(xml.replace('</devices>', `${pools.map(disk).join('')}</devices>`));
    await virsh('pool-destroy', 'off');
    const { disks } = await loadInactive(libvirt.virsh, running.uuid);
    expect(disks.slice(2).map(({ path }) => path)).toEqual([
      ...['two', 'one', 'two'].map((pool) => `${libvirt.directory}/pool-${pool}/disk.img`),
      undefined,
    ]);
  } finally {
    await libvirt.virsh.define(xml);
    for (const pool of ['one', 'two']) await virsh('pool-destroy', pool);
  }
});

describe('virsh', () => {
  it('gives the definition with its secrets, as it is to be defined again', async () => {
    const graphics = "<graphics type='vnc' port='-1' passwd='secret12'/>";
    const xml = (await libvirt.virsh.definition(running.uuid)).replace('</devices>', `${graphics}</devices>`);
    const before = openDescriptors();
    await libvirt.virsh.define(xml);
    expect(openDescriptors()).toBe(before);
    expect(await libvirt.virsh.definition(running.uuid)).toContain("passwd='secret12'");
    expect(await libvirt.virsh.dumpXml(running.uuid, { inactive: true })).not.toContain('secret12');
  });

  it('tells a VM that is gone when it stops from others', async () => {
    await libvirt.virsh.call('undefine', ['--domain', running.uuid]);
    expect(await libvirt.virsh.isPersistent(running.uuid)).toBe(false);
    expect(await libvirt.virsh.list()).toContainEqual({ uuid: running.uuid, name: 'running one' });
  });
});

describe('errors', () => {
  it('a VM that does not exist is a usage error with a hint', async () => {
    const error = await loadDomain(libvirt.virsh, 'nosuch').catch((thrown: unknown) => thrown);
    expect(error).toBeInstanceOf(ChunkmountError);
    expect(error).toMatchObject({ kind: 'usage', message: 'there is no VM called "nosuch"' });
    expect((error as ChunkmountError).hint).toContain('list --all');
  });

  it('a libvirt that cannot be reached is named', async () => {
    const virsh = new Virsh({ connect: 'qemu:///system?socket=/nowhere/libvirt-sock' });
    const error = await loadDomain(virsh, 'running one').catch((thrown: unknown) => thrown);
    expect(error).toMatchObject({ kind: 'failed' });
    expect((error as ChunkmountError).message).toContain('socket=/nowhere/libvirt-sock cannot be reached');
    expect((error as ChunkmountError).hint).toContain('--connect');
  });

  it('an aborted signal ends a call', async () => {
    const virsh = libvirt.virsh.withSignal(AbortSignal.abort());
    await expect(virsh.list()).rejects.toThrow('stopped');
  });
});

describe('names that virsh would take for something else', () => {
  it.each(['7', '-x', '--all'])('%s', async (name) => {
    await makeImage(`${directory}/${name}.img`, 'raw', MIB);
    await libvirt.define(name, [{ target: 'vda', path: `${directory}/${name}.img`, format: 'raw' }], {
      start: false,
    });
    expect(await loadDomain(libvirt.virsh, name)).toMatchObject({ name, state: 'shut off', active: false });
  });
});
