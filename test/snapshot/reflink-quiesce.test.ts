import * as fs from 'node:fs';
import * as path from 'node:path';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { loadDomain } from '../../src/libvirt/load-domain.js';
import { freezeDomain } from '../../src/snapshot/freeze-domain.js';
import { TestFileSystem } from '../support/file-systems.js';
import { makeImage, type TestDomain, TestLibvirt } from '../support/libvirt.js';
import { SnapshotSession } from '../support/snapshot-session.js';

/** A guest with an agent, as far as virsh shows it. Notes what is done to the guest. */
const AGENT = `
case " $* " in
  *guest-fsfreeze-status*) echo "{\\"return\\":\\"$(cat "$STATE/freeze")\\"}"; exit;;
  *" guest-agent-timeout "*) exit;;
  *" domfsfreeze "*) echo freeze >>"$STATE/log"; echo frozen >"$STATE/freeze"; exit;;
  *" domfsthaw "*) echo thaw >>"$STATE/log"; echo thawed >"$STATE/freeze"; exit;;
  *" suspend "*) echo "suspend $(ls "$STATE"/../images | grep -c clone)" >>"$STATE/log";;
  *" resume "*) echo "resume $(ls "$STATE"/../images | grep -c clone)" >>"$STATE/log";;
esac
`;

const realPath = process.env.PATH;
let fileSystem: TestFileSystem;
let libvirt: TestLibvirt;
let domain: TestDomain;
let images: string;

beforeAll(async () => {
  fileSystem = await TestFileSystem.make('btrfs');
  libvirt = await TestLibvirt.start();
  images = path.join(fileSystem.directory, 'images');
  fs.mkdirSync(images);
  const file = (name: string) => path.join(images, name);
  const [vda, vdb, vdc] = [file('vda.qcow2'), file('vdb.img'), file('vdc.img')];
  await makeImage(vda, 'qcow2', 2 ** 20, 0x11);
  await makeImage(vdb, 'raw', 2 ** 20, 0x22);
  await makeImage(vdc, 'raw', 2 ** 20, 0x33);
  domain = await libvirt.define('frozen', [
    { target: 'vda', path: vda, format: 'qcow2' },
    { target: 'vdb', path: vdb, format: 'raw' },
    { target: 'vdc', path: vdc, format: 'raw' },
  ]);
});

afterAll(async () => {
  process.env.PATH = realPath;
  await libvirt?.close();
  await fileSystem?.close();
});

async function freeze(session: SnapshotSession, more: object) {
  const { virsh } = libvirt;
  const { id, journal, reporter } = session;
  return freezeDomain({
    virsh,
    domain: await loadDomain(virsh, domain.name),
    snapshot: 'reflink',
    sessionId: id,
    exclude: [],
    options: { quiesce: 'no' },
    journal,
    reporter,
    ...more,
  });
}

it('is made while the file systems are frozen, or the memory saved, or not at all', async () => {
  const session = new SnapshotSession(libvirt.virsh, path.join(libvirt.directory, 'session'), 'q1');
  const require = { options: { quiesce: 'require' } };
  await expect(freeze(session, require)).rejects.toThrow(/file systems of frozen were not frozen: .*agent/);
  expect(fs.readdirSync(images)).toHaveLength(3);

  const state = path.join(fileSystem.directory, 'state');
  fs.mkdirSync(state);
  fs.writeFileSync(path.join(state, 'freeze'), 'thawed');
  const script = `#!/bin/bash\nSTATE='${state}'\nPATH='${realPath}'\n${AGENT}\nexec virsh "$@"\n`;
  fs.writeFileSync(path.join(state, 'virsh'), script, { mode: 0o755 });
  process.env.PATH = `${state}:${realPath}`;
  expect(await freeze(session, require)).toMatchObject({
    consistency: 'filesystem',
    disks: [
      { kind: 'reflink', bus: 'virtio', image: { format: 'qcow2' } },
      { kind: 'reflink' },
      { kind: 'reflink' },
    ],
  });
  // Their files are there already, and empty.
  const log = fs.readFileSync(path.join(state, 'log'), 'utf8').trim().split('\n');
  expect(log).toEqual(['freeze', 'suspend 3', 'resume 3', 'thaw']);
  expect(await session.undo()).toEqual([]);

  // One raw file is cloned at one moment; two of them are not, unless the VM stands still.
  fs.rmSync(path.join(state, 'log'));
  await freeze(session, { exclude: ['vda', 'vdc'] });
  expect(await session.undo()).toEqual([]);
  expect(fs.existsSync(path.join(state, 'log'))).toBe(false);
  await freeze(session, { exclude: ['vda'] });
  expect(await session.undo()).toEqual([]);
  expect(fs.readFileSync(path.join(state, 'log'), 'utf8')).toBe('suspend 2\nresume 2\n');

  const memoryFile = path.join(libvirt.directory, 'session', 'memory');
  const exclude = { exclude: ['vda', 'vdc'], options: { quiesce: 'no', memoryFile } };
  expect(await freeze(session, exclude)).toMatchObject({ consistency: 'memory', disks: [{ target: 'vdb' }] });
  expect(fs.statSync(memoryFile).size).toBeGreaterThan(0);
  expect(await session.undo()).toEqual([]);
  expect(fs.readdirSync(images)).toHaveLength(3);
});
