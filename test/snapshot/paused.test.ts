import * as fs from 'node:fs';
import * as path from 'node:path';
import { expect, it } from 'vitest';
import { inspectImage } from '../../src/image/inspect.js';
import { startRawView } from '../../src/image/raw-view.js';
import { rawViewUndo } from '../../src/image/raw-view-undo.js';
import { undoAll } from '../../src/session/undo.js';
import { PAUSE_KIND, pauseUndo, whilePaused } from '../../src/snapshot/pause.js';
import { pausedProvider } from '../../src/snapshot/paused.js';
import { type ProviderSetup, snapshotProviderSuite } from '../contracts/snapshot-provider.js';
import { makeImage, TestLibvirt } from '../support/libvirt.js';
import { SnapshotSession } from '../support/snapshot-session.js';

const MIB = 1024 * 1024;

const setup: ProviderSetup = {
  provider: pausedProvider,
  guestWrites: false,
  start: () => TestLibvirt.start(),
  async domain(libvirt, name, directory) {
    const vda = path.join(directory, 'vda.qcow2');
    const vdb = path.join(directory, 'vdb.img');
    await makeImage(vda, 'qcow2', 4 * MIB, 0x11);
    await makeImage(vdb, 'raw', 4 * MIB, 0x11);
    return libvirt.define(name, [
      { target: 'vda', path: vda, format: 'qcow2' },
      { target: 'vdb', path: vdb, format: 'raw' },
    ]);
  },
};

snapshotProviderSuite('paused', setup);

it('pauses, can be read in every way, resumes; and leaves a VM paused that was', async () => {
  const libvirt = await TestLibvirt.start();
  try {
    const domain = await setup.domain(libvirt, 'paused', libvirt.directory);
    const session = new SnapshotSession(libvirt.virsh, path.join(libvirt.directory, 'session'), 'p1');
    const { journal, reporter } = session;
    const state = async () => (await libvirt.virsh.state(domain.uuid)).state;

    await libvirt.guestWrite(domain, 'vda', { offset: 0, length: 65536, pattern: 0x22 });
    const snapshot = await session.freeze(pausedProvider, 'paused');
    expect(await state()).toBe('paused');
    for (const { target, image } of snapshot.disks) {
      const inspected = await inspectImage(image, { reporter });
      expect(inspected.extents.size).toBe(4 * MIB);
      const mountpoint = path.join(libvirt.directory, `view-${target}`);
      const logFile = path.join(libvirt.directory, 'view.log');
      const { layers, virtualSize } = inspected;
      const view = await startRawView({ layers, virtualSize, mountpoint, logFile, journal });
      const first = fs.readFileSync(view.path).subarray(0, 65536);
      expect(first.every((byte) => byte === (target === 'vda' ? 0x22 : 0x11))).toBe(true);
      expect(await undoAll({ journal: viewsOf(session), reporter }, rawViewUndo, new Set())).toEqual([]);
    }
    expect(await session.undo()).toEqual([]);
    expect(await state()).toBe('running');

    await libvirt.virsh.suspend(domain.uuid);
    await session.freeze(pausedProvider, 'paused');
    expect(await session.undo()).toEqual([]);
    expect(await state()).toBe('paused');

    await libvirt.virsh.resume(domain.uuid);
    const subject = { virsh: libvirt.virsh, domain, qemu: libvirt.qemu(domain), journal: session.journal };
    const failing = whilePaused(subject, async () => {
      expect(await state()).toBe('paused');
      throw new Error('no space');
    });
    await expect(failing).rejects.toThrow('no space');
    expect(await state()).toBe('running');
    expect(session.journal.pending()).toEqual([]);
  } finally {
    await libvirt.close();
  }
});

it('lets only the process go on that was paused', async () => {
  const libvirt = await TestLibvirt.start();
  try {
    const domain = await setup.domain(libvirt, 'started-anew', libvirt.directory);
    const session = new SnapshotSession(libvirt.virsh, path.join(libvirt.directory, 'session'), 'p2');
    const { journal, reporter } = session;
    await session.freeze(pausedProvider, 'started-anew');
    const entry = journal.pending().find(({ kind }) => kind === PAUSE_KIND)!;
    const qemu = libvirt.qemu(domain);
    // As that of a VM that was started anew and paused by somebody else.
    const other = { ...entry, data: { ...entry.data, qemu: { ...qemu, startTime: qemu.startTime + 1 } } };
    await pauseUndo[PAUSE_KIND](other, { journal, reporter });
    expect((await libvirt.virsh.state(domain.uuid)).state).toBe('paused');
    await pauseUndo[PAUSE_KIND](entry, { journal, reporter });
    expect((await libvirt.virsh.state(domain.uuid)).state).toBe('running');
  } finally {
    await libvirt.close();
  }
});

/** The session's journal with nothing but the raw views in it. */
function viewsOf({ journal }: SnapshotSession) {
  return new Proxy(journal, {
    get(target, property) {
      const value = Reflect.get(target, property);
      if (property === 'pending') return () => target.pending().filter(({ kind }) => kind === 'raw-view');
      return typeof value === 'function' ? value.bind(target) : value;
    },
  });
}
