import * as fs from 'node:fs';
import * as path from 'node:path';
import { beforeEach, describe, expect, it } from 'vitest';
import { ChunkmountError } from '../../src/errors.js';
import { StateDirectory } from '../../src/session/state-directory.js';
import { overlayProvider } from '../../src/snapshot/overlay/provider.js';
import { hasPattern } from '../support/libvirt.js';
import { SnapshotSession } from '../support/snapshot-session.js';
import {
  count,
  directory,
  disks,
  domain,
  expectMerged,
  images,
  libvirt,
  pathsAtNextStart,
  pathsNow,
  releaseHolds,
  setDomain,
  start,
  useOverlayVm,
  WRITTEN,
  WRITTEN_LATER,
} from './overlay-vm.js';

useOverlayVm();

/** What is kept of a VM under its old name, and under the new one. */
let older: SnapshotSession;
let newer: SnapshotSession;

beforeEach(() => {
  const state = new StateDirectory(path.join(libvirt.directory, `state-${count}`));
  const kept = (name: string) =>
    new SnapshotSession(libvirt.virsh, path.dirname(state.keptJournal(name)), `${name}${count}`);
  older = kept('older');
  newer = kept('newer');
});

/** A session under each name that keeps its overlays, and what the guest wrote after each. */
async function renamed(): Promise<void> {
  await start();
  await older.freeze(overlayProvider, domain.name);
  await releaseHolds(older);
  for (const { target } of disks) await libvirt.guestWrite(domain, target, WRITTEN);
  await libvirt.killQemu(domain);
  const name = `renamed-${count}`;
  await libvirt.virsh.call('domrename', ['--domain', domain.uuid, '--new-name', name]);
  await libvirt.startDomain(name);
  setDomain({ ...domain, name });
  await newer.freeze(overlayProvider, name);
  await releaseHolds(newer);
  for (const { target } of disks) await libvirt.guestWrite(domain, target, WRITTEN_LATER);
}

async function expectRefused(): Promise<void> {
  const overlays = fs.readdirSync(directory).sort();
  const errors = (await older.undo()) as ChunkmountError[];
  expect(errors).toHaveLength(2);
  for (const error of errors) {
    expect(error).toBeInstanceOf(ChunkmountError);
    expect(error.message).toMatch(/\.cm-newer.*, which was made by a backup of newer, lies on it/);
    expect(error.hint).toContain('chunkmount cleanup --kept --vm=newer');
  }
  expect(fs.readdirSync(directory).sort()).toEqual(overlays);
}

async function expectEnd(): Promise<void> {
  expect(await newer.undo()).toEqual([]);
  expect(await older.undo()).toEqual([]);
  await expectMerged();
  for (const { path: image, format } of disks)
    expect(await hasPattern(image, format, WRITTEN_LATER)).toBe(true);
  expect(await pathsAtNextStart()).toEqual(images());
}

describe('an overlay on which one of another name lies', () => {
  it('stays until that one is merged', async () => {
    await renamed();
    await expectRefused();
    await expectEnd();
    expect(await pathsNow()).toEqual(images());
  });

  it('stays while the VM is off, and when it was forgotten', async () => {
    await renamed();
    await libvirt.killQemu(domain);
    await expectRefused();
    await libvirt.virsh.call('undefine', ['--domain', domain.uuid]);
    await expectRefused();
    expect(await newer.undo()).toEqual([]);
    expect(await older.undo()).toEqual([]);
    await expectMerged();
  });

  it('is merged when that one was removed', async () => {
    await renamed();
    const above = await pathsNow();
    for (const [index, { target }] of disks.entries()) {
      const layers = ['--top', above[index]!, '--active', '--wait', '--pivot', '--shallow'];
      await libvirt.virsh.call('blockcommit', ['--domain', domain.uuid, '--path', target, ...layers]);
      fs.rmSync(above[index]!);
    }
    expect(await older.undo()).toEqual([]);
    await expectMerged();
  });
});
