import * as path from 'node:path';
import { execa } from 'execa';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { loadDomain } from '../../src/libvirt/load-domain.js';
import { freezeDomain } from '../../src/snapshot/freeze-domain.js';
import { pullProvider } from '../../src/snapshot/pull/provider.js';
import { PULL_KIND } from '../../src/snapshot/watched-kinds.js';
import { makeImage, type TestDisk, type TestDomain, TestLibvirt } from '../support/libvirt.js';
import { SnapshotSession } from '../support/snapshot-session.js';

const MIB = 1024 * 1024;

let libvirt: TestLibvirt;
let domain: TestDomain;
let count = 0;

function newSession(): SnapshotSession {
  count++;
  return new SnapshotSession(libvirt.virsh, path.join(libvirt.directory, `session-${count}`), `d${count}`);
}

beforeAll(async () => {
  libvirt = await TestLibvirt.start();
  const file = (name: string) => path.join(libvirt.directory, name);
  const disks: TestDisk[] = [
    { target: 'vda', path: file('vda.qcow2'), format: 'qcow2' },
    { target: 'vdb', path: file('vdb.img'), format: 'raw' },
    { target: 'vdc', path: file('vdc.qcow2'), format: 'qcow2' },
    { target: 'vdd', path: file('vdd.qcow2'), format: 'qcow2', extra: '<readonly/>' },
  ];
  for (const disk of disks) await makeImage(disk.path, disk.format, MIB, 0x11);
  await execa('qemu-img', ['amend', '-f', 'qcow2', '-o', 'compat=0.10', file('vdc.qcow2')]);
  domain = await libvirt.define('disks', disks);
});

afterAll(() => libvirt?.close());

it('disks that can hold no bitmap are frozen all the same, and say why', async () => {
  const session = newSession();
  // A checkpoint that libvirt does not know: it is asked for less then.
  const since = new Map([
    ['vda', 'cm-gone'],
    ['vdb', 'cm-gone'],
  ]);
  const snapshot = await session.freeze(pullProvider, domain.name, { checkpoints: { since } });
  expect(snapshot.disks.map(({ image }) => image.nbdExport)).toEqual(['vda', 'vdb', 'vdc', 'vdd']);
  const told = session.journal.pending().filter(({ kind }) => kind === PULL_KIND);
  expect(Object.fromEntries(told.map(({ data }) => [data.target, data]))).toMatchObject({
    vda: { checkpoint: `cm-${session.id}`, snapshots: 0, notSince: expect.stringContaining('cm-gone') },
    vdb: { noCheckpoint: expect.stringContaining('it is raw'), notSince: expect.stringContaining('raw') },
    vdc: { noCheckpoint: expect.stringContaining('version 2') },
    vdd: { noCheckpoint: 'it is read-only' },
  });
  expect(told.every(({ data }) => data.since === undefined)).toBe(true);
  expect(await session.undo()).toEqual([]);
});

it('a disk that can hold no bitmap does not keep others from going on from their checkpoint', async () => {
  const [first, second] = [newSession(), newSession()];
  await first.freeze(pullProvider, domain.name, { checkpoints: { since: new Map() } });
  await libvirt.virsh.abortDomainJob(domain.uuid);
  const since = new Map([
    ['vda', `cm-${first.id}`],
    ['vdb', 'cm-gone'],
  ]);
  await second.freeze(pullProvider, domain.name, { checkpoints: { since } });
  const told = second.journal.pending().filter(({ kind }) => kind === PULL_KIND);
  expect(told.find(({ data }) => data.target === 'vda')?.data.since).toBe(`cm-${first.id}`);
  expect(await second.undo()).toEqual([]);
  expect(await first.undo()).toEqual([]);
});

it('a VM that is off, or that has a job, is refused; and so is saving its memory', async () => {
  const { virsh } = libvirt;
  const loaded = await loadDomain(virsh, domain.name);
  const [vda] = loaded.disks;
  const session = newSession();
  await session.freeze(pullProvider, domain.name);
  expect(await pullProvider.refusal({ virsh, domain: loaded }, vda!)).toMatch(/a job .* works on disks/);
  expect(await session.undo()).toEqual([]);
  const paused = { ...loaded, state: 'paused' } as const;
  expect(await pullProvider.refusal({ virsh, domain: paused }, vda!)).toBeUndefined();
  const off = { ...loaded, state: 'shut off', active: false } as const;
  expect(await pullProvider.refusal({ virsh, domain: off }, vda!)).toMatch(
    /is shut off, and only a running VM/,
  );
  const { journal, reporter } = newSession();
  const options = { quiesce: 'no', memoryFile: path.join(libvirt.directory, 'memory') } as const;
  const request = { virsh, domain: loaded, exclude: [], sessionId: 'd', journal, reporter };
  await expect(freezeDomain({ ...request, snapshot: 'pull', options })).rejects.toThrow(
    'cannot be saved with --snapshot=pull',
  );
});

it('the guest is frozen for the moment when that is asked for', async () => {
  const loaded = await loadDomain(libvirt.virsh, domain.name);
  const session = newSession();
  const request = {
    virsh: libvirt.virsh,
    domain: loaded,
    exclude: [],
    sessionId: session.id,
    journal: session.journal,
    reporter: session.reporter,
    snapshot: 'pull',
  } as const;
  await expect(freezeDomain({ ...request, options: { quiesce: 'require' } })).rejects.toThrow(
    'were not frozen',
  );
  const { consistency, disks } = await freezeDomain({ ...request, options: { quiesce: 'try' } });
  expect(consistency).toBe('crash');
  expect(disks.map(({ kind }) => kind)).toEqual(['pull', 'pull', 'pull', 'pull']);
  expect(session.reporter.messages.join('\n')).toContain('its snapshot is as after a power failure');
  expect(await session.undo()).toEqual([]);
});
