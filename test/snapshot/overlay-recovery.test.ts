import * as fs from 'node:fs';
import { describe, expect, it } from 'vitest';
import { bootId } from '../../src/host/process-identity.js';
import type { JournalEntry } from '../../src/session/journal.js';
import { overlayProvider } from '../../src/snapshot/overlay/provider.js';
import { writePattern } from '../support/libvirt.js';
import {
  disks,
  domain,
  expectKept,
  expectMerged,
  freezeAndWrite,
  images,
  libvirt,
  pathsAtNextStart,
  pathsNow,
  releaseHolds,
  session,
  start,
  useOverlayVm,
  WRITTEN,
  WRITTEN_LATER,
} from './overlay-vm.js';

useOverlayVm();

describe('the VM stopped during the backup', () => {
  it('QEMU crashed: merged without it, and defined on the base again', async () => {
    await start();
    await freezeAndWrite();
    await libvirt.killQemu(domain);
    expect(await session.undo()).toEqual([]);
    await expectMerged();
    expect(await pathsAtNextStart()).toEqual(images());
    await libvirt.startDomain(domain.uuid);
    await libvirt.guestVerify(domain, 'vda', WRITTEN);
  });

  it('crashed and started again: on its overlays, which are merged live', async () => {
    await start();
    await freezeAndWrite();
    await libvirt.killQemu(domain);
    await libvirt.startDomain(domain.uuid);
    await libvirt.guestWrite(domain, 'vda', WRITTEN_LATER);
    expect(await session.undo()).toEqual([]);
    await expectMerged();
    expect(await pathsNow()).toEqual(images());
    await libvirt.guestVerify(domain, 'vda', WRITTEN_LATER);
  });

  it('the definition keeps all else when it is put back', async () => {
    disks[0] = { ...disks[0]!, extra: '<serial>A B</serial><alias name="ua-first"/>' };
    await start();
    const before = await libvirt.virsh.definition(domain.uuid);
    await session.freeze(overlayProvider, domain.name);
    await libvirt.killQemu(domain);
    expect(await session.undo()).toEqual([]);
    expect(await libvirt.virsh.definition(domain.uuid)).toBe(before);
  });

  it('a transient VM is gone: merged all the same', async () => {
    await start({ transient: true });
    await freezeAndWrite();
    await libvirt.virsh.call('destroy', ['--domain', domain.uuid]);
    expect(await session.undo()).toEqual([]);
    await expectMerged();
  });

  it('it was undefined too: merged all the same', async () => {
    await start();
    await freezeAndWrite();
    await libvirt.killQemu(domain);
    await libvirt.virsh.call('undefine', ['--domain', domain.uuid]);
    expect(await session.undo()).toEqual([]);
    await expectMerged();
  });

  it('its memory was saved: kept until it has been started', async () => {
    await start();
    await freezeAndWrite();
    await libvirt.virsh.call('managedsave', ['--domain', domain.uuid]);
    await expectKept(/memory was saved/);
    await libvirt.startDomain(domain.uuid);
    expect(await session.undo()).toEqual([]);
    await expectMerged();
  });
});

describe('the base shows an older time of last write than after the snapshot', () => {
  /** As when that was lost. `data`: what else the journal has then. */
  async function agedBase(data: (now: JournalEntry['data']) => JournalEntry['data']): Promise<void> {
    await start();
    await freezeAndWrite();
    await libvirt.killQemu(domain);
    await releaseHolds();
    for (const entry of session.journal.pending()) {
      const { markedIn, ...before } = entry.data;
      expect(markedIn).toBe(bootId());
      const [kind, time] = String(before.baseMark).split(' ');
      const baseMark = `${kind} ${BigInt(time!) + 10n ** 9n}`;
      session.journal.undone(entry);
      session.journal.done(session.journal.intend(entry.kind, { ...before, baseMark, ...data(before) }));
    }
  }

  const earlier = { markedIn: 'another boot' };
  const earlierVersion = ({ qemu }: JournalEntry['data']) => ({
    qemu: { ...(qemu as object), bootId: 'another boot' },
  });

  it.each([
    ['', () => earlier],
    [', in a journal of an earlier version', earlierVersion],
  ])('in an earlier boot: a power failure took it back, and all is merged%s', async (_, data) => {
    await agedBase(data);
    expect(await session.undo()).toEqual([]);
    await expectMerged();
    expect(await pathsAtNextStart()).toEqual(images());
  });

  it('in an earlier boot, and the VM runs again: all is merged', async () => {
    await agedBase(() => earlier);
    await libvirt.startDomain(domain.uuid);
    await libvirt.guestWrite(domain, 'vda', WRITTEN_LATER);
    expect(await session.undo()).toEqual([]);
    await expectMerged();
    await libvirt.guestVerify(domain, 'vda', WRITTEN_LATER);
  });

  it('in an earlier boot, and no VM refers to the overlay: both are kept', async () => {
    await agedBase(() => earlier);
    await libvirt.virsh.call('undefine', ['--domain', domain.uuid]);
    await expectKept(/may have been written since/);
  });

  it('in this boot: somebody changed it, and both are kept', async () => {
    await agedBase(() => ({ markedIn: bootId() }));
    await expectKept(/was written after the snapshot/);
  });
});

describe('somebody changed the definition during the backup', () => {
  async function defineOnImages(): Promise<void> {
    await libvirt.define(domain.name, disks, { start: false, uuid: domain.uuid });
  }

  it('old XML was defined: the merge heals it', async () => {
    await start();
    await freezeAndWrite();
    await defineOnImages();
    expect(await session.undo()).toEqual([]);
    await expectMerged();
    expect(await pathsAtNextStart()).toEqual(images());
  });

  it('old XML was defined and the VM stopped: the newest data is merged', async () => {
    await start();
    await freezeAndWrite();
    await defineOnImages();
    await libvirt.killQemu(domain);
    expect(await session.undo()).toEqual([]);
    await expectMerged();
  });

  it('old XML was defined and the VM cannot be started on what is being read', async () => {
    await start();
    await freezeAndWrite();
    await defineOnImages();
    await libvirt.killQemu(domain);
    await expect(libvirt.startDomain(domain.uuid)).rejects.toThrow(/lock/);
  });

  it('the VM was started on the base once nobody held it: both are kept', async () => {
    await start();
    await freezeAndWrite();
    await defineOnImages();
    await libvirt.killQemu(domain);
    await releaseHolds();
    await libvirt.startDomain(domain.uuid);
    await libvirt.guestWrite(domain, 'vda', WRITTEN_LATER);
    await libvirt.guestWrite(domain, 'vdb', WRITTEN_LATER);
    await expectKept(/without its overlay/);
    await libvirt.killQemu(domain);
    await expectKept(/written/);
  });

  it('the base was written while the VM was off: both are kept', async () => {
    await start();
    await freezeAndWrite();
    await libvirt.killQemu(domain);
    await releaseHolds();
    for (const disk of disks) await writePattern(disk.path, disk.format, WRITTEN_LATER);
    await expectKept(/was written after the snapshot/);
  });

  it('the base was replaced: both are kept', async () => {
    await start();
    await freezeAndWrite();
    await libvirt.killQemu(domain);
    for (const disk of disks) {
      fs.copyFileSync(disk.path, `${disk.path}.new`);
      fs.renameSync(`${disk.path}.new`, disk.path);
    }
    await expectKept(/was replaced after the snapshot/);
  });
});
