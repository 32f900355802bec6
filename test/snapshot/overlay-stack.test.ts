import * as fs from 'node:fs';
import { describe, expect, it } from 'vitest';
import { loadDomain } from '../../src/libvirt/load-domain.js';
import type { JournalEntry } from '../../src/session/journal.js';
import { undoAll } from '../../src/session/undo.js';
import { identityOf, writeMark } from '../../src/snapshot/image-identity.js';
import { overlayProvider } from '../../src/snapshot/overlay/provider.js';
import { readOverlayRecord } from '../../src/snapshot/overlay/record.js';
import { snapshotUndo } from '../../src/snapshot/select.js';
import { OVERLAY_KIND } from '../../src/snapshot/watched-kinds.js';
import { hasPattern } from '../support/libvirt.js';
import {
  disks,
  domain,
  expectMerged,
  images,
  libvirt,
  pathsAtNextStart,
  pathsNow,
  session,
  start,
  useOverlayVm,
  WRITTEN,
  WRITTEN_LATER,
} from './overlay-vm.js';

useOverlayVm();

async function freeze(sessionId: string): Promise<void> {
  const loaded = await loadDomain(libvirt.virsh, domain.name);
  const options = { quiesce: 'no' } as const;
  const request = { virsh: libvirt.virsh, domain: loaded, disks: loaded.disks, sessionId, options };
  await overlayProvider.freeze({ ...request, journal: session.journal, reporter: session.reporter });
}

function overlaysOf(sessionId: string): JournalEntry[] {
  return session.journal
    .pending()
    .filter(({ kind, data }) => kind === OVERLAY_KIND && data.session === sessionId);
}

/** Two sessions whose overlays are kept, and what the guest wrote after each. */
async function twice(): Promise<void> {
  await start();
  await freeze('lower');
  for (const { target } of disks) await libvirt.guestWrite(domain, target, WRITTEN);
  await freeze('upper');
  for (const { target } of disks) await libvirt.guestWrite(domain, target, WRITTEN_LATER);
}

/** As at the end of a session that keeps its own overlays. */
async function undoLower(): Promise<Error[]> {
  const context = { journal: session.reopen(), reporter: session.reporter };
  return undoAll(context, snapshotUndo, new Set(), ({ data }) => data.session === 'upper');
}

async function expectUpperOnImages(seen: boolean): Promise<void> {
  session.reopen();
  expect(overlaysOf('lower')).toEqual([]);
  const upper = overlaysOf('upper').map(readOverlayRecord);
  for (const { path: image, target, format } of disks) {
    const record = upper.find((one) => one.target === target)!;
    expect(record).toMatchObject({ base: { path: image, format }, committing: false, mergeUnseen: !seen });
    expect(record.baseMark).toBe(writeMark(image));
    expect(record.definition?.source).toContain(image);
    expect(await hasPattern(image, format, WRITTEN)).toBe(true);
    expect(await hasPattern(image, format, WRITTEN_LATER)).toBe(false);
  }
  expect(await pathsNow()).toEqual(
    disks.map(({ target }) => upper.find((one) => one.target === target)!.overlay),
  );
  for (const { target } of disks) await libvirt.guestVerify(domain, target, WRITTEN_LATER);
}

/** All is merged, in the order of the journal. */
async function expectEnd(): Promise<void> {
  expect(await session.undo()).toEqual([]);
  await expectMerged();
  for (const { path: image, format } of disks)
    expect(await hasPattern(image, format, WRITTEN_LATER)).toBe(true);
  expect(await pathsAtNextStart()).toEqual(images());
}

describe('an overlay on which another of ours lies', () => {
  it('is merged from below: the other lies on the image then, and its record says so', async () => {
    await twice();
    expect(await undoLower()).toEqual([]);
    await expectUpperOnImages(true);
    await expectEnd();
  });

  it('and whose merge was begun before: whether the image was written since cannot be told', async () => {
    await twice();
    for (const entry of overlaysOf('lower')) session.journal.done(entry, { committing: true });
    expect(await undoLower()).toEqual([]);
    await expectUpperOnImages(false);
    await expectEnd();
  });

  it('was merged, which nobody recorded, and the VM was started again', async () => {
    await twice();
    for (const entry of session.journal.pending().filter(({ kind }) => kind !== OVERLAY_KIND)) {
      await snapshotUndo[entry.kind]!(entry, { journal: session.journal, reporter: session.reporter });
      session.journal.undone(entry);
    }
    for (const entry of overlaysOf('lower')) {
      const { target, overlay, base } = readOverlayRecord(entry);
      const { overlay: above } = readOverlayRecord(
        overlaysOf('upper').find((one) => one.data.target === target)!,
      );
      session.journal.done(entry, { committing: true, above: { path: above, identity: identityOf(above) } });
      const layers = ['--base', base.path, '--top', overlay, '--wait'];
      await libvirt.virsh.call('blockcommit', ['--domain', domain.uuid, '--path', target, ...layers]);
    }
    await libvirt.killQemu(domain);
    await libvirt.startDomain(domain.uuid);
    const files = overlaysOf('lower').map((entry) => readOverlayRecord(entry).overlay);
    expect(await undoLower()).toEqual([]);
    for (const file of files) expect(fs.existsSync(file)).toBe(false);
    await expectUpperOnImages(false);
    await expectEnd();
  });

  it('cannot be merged from below while the VM is off: all is merged', async () => {
    await twice();
    await libvirt.virsh.call('destroy', ['--domain', domain.uuid]);
    expect(await undoLower()).toEqual([]);
    await expectEnd();
  });

  it('and of a VM that was forgotten: all is merged', async () => {
    await twice();
    await libvirt.virsh.call('destroy', ['--domain', domain.uuid]);
    await libvirt.virsh.call('undefine', ['--domain', domain.uuid]);
    expect(await undoLower()).toEqual([]);
    await expectMerged();
  });
});
