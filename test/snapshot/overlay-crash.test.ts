import * as fs from 'node:fs';
import * as path from 'node:path';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { loadDomain } from '../../src/libvirt/load-domain.js';
import { overlayProvider } from '../../src/snapshot/overlay/provider.js';
import {
  hasPattern,
  makeTwoDisks,
  signalWhenThere,
  type TestDisk,
  type TestDomain,
  TestLibvirt,
} from '../support/libvirt.js';
import { SnapshotSession } from '../support/snapshot-session.js';

const MIB = 1024 * 1024;
const WRITTEN = { offset: MIB, length: 65536, pattern: 0x22 };

let libvirt: TestLibvirt;
let count = 0;
let directory: string;
let disks: TestDisk[];
let domain: TestDomain;
let session: SnapshotSession;

beforeAll(async () => {
  libvirt = await TestLibvirt.start();
});

afterAll(() => libvirt?.close());

beforeEach(async () => {
  count++;
  directory = path.join(libvirt.directory, `images-${count}`);
  fs.mkdirSync(directory);
  disks = await makeTwoDisks(directory);
  domain = await libvirt.define(`crash-${count}`, disks);
  session = new SnapshotSession(libvirt.virsh, path.join(libvirt.directory, `session-${count}`), `c${count}`);
});

afterEach(async () => {
  await session.undo();
  await libvirt.remove(domain);
});

async function expectRestored(): Promise<void> {
  expect(session.journal.pending()).toEqual([]);
  expect(fs.readdirSync(directory).sort()).toEqual(['vda.qcow2', 'vdb.img']);
  const { disks: now } = await loadDomain(libvirt.virsh, domain.name);
  expect(now.map((disk) => [disk.path, disk.mirror])).toEqual(disks.map((disk) => [disk.path, undefined]));
}

/** More than the journal gets in either direction: so the last ones do not die at all. */
const RECORDS = Array.from({ length: 14 }, (_, index) => index + 1);

describe('killed while freezing', () => {
  it.each(RECORDS)('after journal record %i', async (records) => {
    expect(await session.dyingFreeze(overlayProvider, domain.name, { records })).toBe(records <= 12);
    expect(await session.undo()).toEqual([]);
    await expectRestored();
  });

  it.each(RECORDS)('before journal record %i was written', async (records) => {
    const death = { records, before: true };
    expect(await session.dyingFreeze(overlayProvider, domain.name, death)).toBe(records <= 12);
    expect(await session.undo()).toEqual([]);
    await expectRestored();
  });
});

describe('killed while undoing', () => {
  async function dyingUndo(records: number): Promise<void> {
    await session.freeze(overlayProvider, domain.name);
    for (const { target } of disks) await libvirt.guestWrite(domain, target, WRITTEN);
    expect(await session.dyingUndo({ records })).toBe(records <= 9);
  }

  it.each(RECORDS.slice(0, 10))(
    'after journal record %i: the next cleanup finishes, with the data',
    async (records) => {
      await dyingUndo(records);
      expect(await session.undo()).toEqual([]);
      await expectRestored();
      for (const { target } of disks) await libvirt.guestVerify(domain, target, WRITTEN);
    },
  );

  it.each(RECORDS.slice(0, 10))('after journal record %i, and QEMU too', async (records) => {
    await dyingUndo(records);
    await libvirt.killQemu(domain);
    expect(await session.undo()).toEqual([]);
    await expectRestored();
    for (const disk of disks) expect(await hasPattern(disk.path, disk.format, WRITTEN)).toBe(true);
  });
});

describe('killed while libvirt makes the snapshot', () => {
  const real = process.env.PATH;
  afterEach(() => {
    process.env.PATH = real;
  });

  /**
   * A virsh that goes on in the background when it is killed, and takes its time: as libvirtd does. Gives a signal that comes when
   * it does so.
   */
  function slowVirsh(seconds: number): AbortSignal {
    const bin = path.join(libvirt.directory, `bin-${count}`);
    fs.mkdirSync(bin);
    const comes = path.join(bin, 'comes');
    const script = `#!/bin/sh
case "$*" in
  *snapshot-create*) PATH='${real}' setsid sh -c ': >"$0"; sleep ${seconds}; exec virsh "$@"' '${comes}' "$@" >/dev/null 2>&1 &
    exec sleep 60;;
  *) PATH='${real}' exec virsh "$@";;
esac
`;
    fs.writeFileSync(path.join(bin, 'virsh'), script, { mode: 0o755 });
    process.env.PATH = `${bin}:${real}`;
    return signalWhenThere(comes);
  }

  it('a snapshot that comes seconds later is found and undone', async () => {
    const signal = slowVirsh(3);
    await expect(session.freeze(overlayProvider, domain.name, { signal })).rejects.toThrow(/stopped/);
    const started = Date.now();
    expect(await session.undo()).toEqual([]);
    expect(Date.now() - started).toBeLessThan(30_000);
    await expectRestored();
    expect(session.reporter.messages.join('\n')).toContain('its snapshot may still come');
  });
});

describe('libvirtd was killed', () => {
  it('during the backup: cleanup fails while it is away, and works when it is back', async () => {
    await session.freeze(overlayProvider, domain.name);
    await libvirt.guestWrite(domain, 'vda', WRITTEN);
    await libvirt.stopDaemon('SIGKILL');
    const errors = await session.undo();
    expect(errors.map(({ message }) => message)).toEqual([
      expect.stringContaining('cannot be reached'),
      expect.stringContaining('cannot be reached'),
    ]);
    await libvirt.startDaemon();
    expect(await session.undo()).toEqual([]);
    await expectRestored();
    await libvirt.guestVerify(domain, 'vda', WRITTEN);
  });
});
