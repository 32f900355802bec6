import * as fs from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { describe, expect, it } from 'vitest';
import { run } from '../../src/host/exec.js';
import { readOverlayRecord } from '../../src/snapshot/overlay/record.js';
import { hasPattern, type TestDisk } from '../support/libvirt.js';
import {
  disks,
  domain,
  ELSEWHERE,
  expectKept,
  expectMerged,
  freezeAndWrite,
  libvirt,
  releaseHolds,
  session,
  start,
  useOverlayVm,
  WRITTEN,
  WRITTEN_LATER,
} from './overlay-vm.js';

useOverlayVm();

/** What a cleanup records: of the hold one, and then of vdb these. */
const MERGED_OFFLINE = 3;
const PIVOTING = 3;
const MERGED_LIVE = 4;

function overlayOf(target: string): string {
  const records = session.reopen().pending().map(readOverlayRecord);
  return records.find((one) => one.target === target)!.overlay;
}

/** Somebody edits the definition, which still names the overlays. */
async function defineOnImages(): Promise<void> {
  await libvirt.define(domain.name, disks, { start: false, uuid: domain.uuid });
}

/** The VM is started on its overlays once more, and writes to them. */
async function runOnOverlays(): Promise<void> {
  await libvirt.startDomain(domain.uuid);
  for (const { target } of disks) await libvirt.guestWrite(domain, target, WRITTEN_LATER);
  await libvirt.killQemu(domain);
}

describe('a VM that was started again on an overlay that had been merged', () => {
  it('offline, and was then defined on its image: the overlay is kept', async () => {
    await start();
    await freezeAndWrite();
    await libvirt.killQemu(domain);
    expect(await session.dyingUndo({ records: MERGED_OFFLINE })).toBe(true);
    const overlay = overlayOf('vdb');
    await runOnOverlays();
    await defineOnImages();
    // That of vda was not begun to be merged.
    expect((await session.undo()).map(({ message }) => message)).toEqual([
      expect.stringMatching(/no VM refers to .*vdb.* any more/),
    ]);
    expect(await hasPattern(overlay, 'qcow2', WRITTEN_LATER)).toBe(true);
    expect(await hasPattern(disks[0]!.path, disks[0]!.format, WRITTEN_LATER)).toBe(true);
  });

  it('offline, and is on it: it is merged again', async () => {
    await start();
    await freezeAndWrite();
    await libvirt.killQemu(domain);
    expect(await session.dyingUndo({ records: MERGED_OFFLINE })).toBe(true);
    await runOnOverlays();
    expect(await session.undo()).toEqual([]);
    await expectMerged();
    for (const disk of disks) expect(await hasPattern(disk.path, disk.format, WRITTEN_LATER)).toBe(true);
  });

  it('but for the pivot, and then on its image: both are kept', async () => {
    await start();
    await freezeAndWrite();
    expect(await session.dyingUndo({ records: PIVOTING })).toBe(true);
    await libvirt.killQemu(domain);
    await sleep(1_100);
    await runOnOverlays();
    await defineOnImages();
    await sleep(1_100);
    await libvirt.startDomain(domain.uuid);
    for (const { target } of disks) await libvirt.guestWrite(domain, target, ELSEWHERE);
    const overlay = overlayOf('vdb');
    await expectKept(/differ, and it cannot be told|without its overlay/);
    expect(await hasPattern(overlay, 'qcow2', WRITTEN_LATER)).toBe(true);
  });
});

it('a guest that writes to its image when nobody saw the pivot: the overlay is not needed', async () => {
  await start();
  await freezeAndWrite();
  expect(await session.dyingUndo({ records: MERGED_LIVE, before: true })).toBe(true);
  const overlay = overlayOf('vdb');
  expect(fs.existsSync(overlay)).toBe(true);
  await libvirt.guestWrite(domain, 'vdb', { ...WRITTEN, pattern: 0x55 });
  expect(await session.undo()).toEqual([]);
  expect(fs.existsSync(overlay)).toBe(false);
  await libvirt.guestVerify(domain, 'vdb', { ...WRITTEN, pattern: 0x55 });
});

describe('a journal of an older version says that all is merged, and not as of when', () => {
  async function older(): Promise<TestDisk[]> {
    await start();
    await freezeAndWrite();
    await libvirt.killQemu(domain);
    await releaseHolds();
    const overlays = session.journal.pending().map((entry) => {
      session.journal.done(entry, { committing: true, pivoting: true, merged: true });
      return readOverlayRecord(entry);
    });
    await defineOnImages();
    return overlays.map(({ target, overlay }) => ({ target, path: overlay, format: 'qcow2' }));
  }

  async function commitByHand(overlay: string): Promise<void> {
    await run('qemu-img', ['commit', '-q', '-d', '-f', 'qcow2', overlay]);
  }

  it('and it is not', async () => {
    const overlays = await older();
    await expectKept(/differ, and it cannot be told/);
    for (const { path } of overlays) expect(await hasPattern(path, 'qcow2', WRITTEN)).toBe(true);
  });

  it('and it is', async () => {
    for (const { path } of await older()) await commitByHand(path);
    expect(await session.undo()).toEqual([]);
    await expectMerged();
  });

  it('and the overlays are gone', async () => {
    for (const { path } of await older()) {
      await commitByHand(path);
      fs.rmSync(path);
    }
    expect(await session.undo()).toEqual([]);
    await expectMerged();
  });
});
