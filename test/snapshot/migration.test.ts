import * as fs from 'node:fs';
import * as path from 'node:path';
import { execa } from 'execa';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { loadDomain } from '../../src/libvirt/load-domain.js';
import { overlayProvider } from '../../src/snapshot/overlay/provider.js';
import { eventually, makeImage, type TestDomain, TestLibvirt } from '../support/libvirt.js';
import { SnapshotSession } from '../support/snapshot-session.js';

const MIB = 1024 * 1024;
const SIZE = 32 * MIB;
const BEFORE = { offset: 0, length: SIZE, pattern: 0x11 };
const WRITTEN = { offset: MIB, length: MIB, pattern: 0x22 };

/** Two hosts with the same storage. */
let here: TestLibvirt;
let there: TestLibvirt;
let domain: TestDomain;
let session: SnapshotSession;
let image: string;
let count = 0;

beforeAll(async () => {
  here = await TestLibvirt.start();
  there = await TestLibvirt.start();
});

afterAll(async () => {
  await here?.close();
  await there?.close();
});

beforeEach(async () => {
  const name = `wanderer-${++count}`;
  image = path.join(here.directory, `${name}.raw`);
  await makeImage(image, 'raw', SIZE, BEFORE.pattern);
  domain = await here.define(name, [{ target: 'vda', path: image, format: 'raw' }]);
  session = new SnapshotSession(here.virsh, path.join(here.directory, name), `m${count}`);
});

afterEach(async () => {
  await here.remove(domain);
  await there.remove(domain);
});

/** Begins to move the VM to the other host; what the two QEMUs say to each other goes through sockets. */
function migrate(...options: string[]) {
  const socket = (what: string) => `unix://${path.join(there.directory, `${domain.name}-${what}.sock`)}`;
  const uris = [
    `--desturi=${there.uri}`,
    `--migrateuri=${socket('memory')}`,
    `--disks-uri=${socket('disks')}`,
  ];
  const args = [`--connect=${here.uri}`, 'migrate', '--live', `--domain=${domain.name}`, ...uris, ...options];
  return execa('virsh', args, { reject: false });
}

describe('a VM that is on its way to another host', () => {
  it('is refused, with the reason, and frozen when it has stayed', async () => {
    const copy = path.join(there.directory, 'copy.raw');
    await makeImage(copy, 'raw', SIZE);
    const xml = path.join(there.directory, 'copy.xml');
    const definition = await here.virsh.call('dumpxml', ['--domain', domain.uuid, '--migratable']);
    fs.writeFileSync(xml, definition.replaceAll(image, copy));
    // In MiB a second: it takes half a minute.
    const moving = migrate('--copy-storage-all', '--migrate-disks=vda', `--xml=${xml}`, '--bandwidth=1');
    await eventually(() => here.virsh.hasDomainJob(domain.uuid));
    const loaded = await loadDomain(here.virsh, domain.name);
    const refusal = await overlayProvider.refusal({ virsh: here.virsh, domain: loaded }, loaded.disks[0]!);
    expect(refusal).toMatch(/^disk vda: a job \(backup, migration, save or dump\) works on wanderer-/);
    await here.virsh.abortDomainJob(domain.uuid);
    expect((await moving).exitCode).not.toBe(0);
    await session.freeze(overlayProvider, domain.name);
    expect(await session.undo()).toEqual([]);
  });

  it('and arrives there during the backup: what it runs on is kept', async () => {
    await session.freeze(overlayProvider, domain.name);
    await here.guestWrite(domain, 'vda', WRITTEN);
    const [{ path: overlay } = { path: undefined }] = (await loadDomain(here.virsh, domain.name)).disks;
    const { exitCode, stderr } = await migrate('--unsafe', '--persistent', '--undefinesource');
    expect(exitCode, stderr).toBe(0);
    const errors = await session.undo();
    expect(errors.map(({ message }) => message)).toEqual([
      `disk vda of ${domain.name} cannot be merged: another program writes ${overlay}`,
    ]);
    expect(fs.existsSync(overlay!)).toBe(true);
    await there.guestVerify(domain, 'vda', WRITTEN);
  });
});
