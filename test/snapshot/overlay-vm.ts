import * as fs from 'node:fs';
import * as path from 'node:path';
import { afterAll, afterEach, beforeAll, beforeEach, expect } from 'vitest';
import { loadDomain, loadInactive } from '../../src/libvirt/load-domain.js';
import { overlayProvider } from '../../src/snapshot/overlay/provider.js';
import { hasPattern, makeTwoDisks, type TestDisk, type TestDomain, TestLibvirt } from '../support/libvirt.js';
import { SnapshotSession } from '../support/snapshot-session.js';

export const MIB = 1024 * 1024;
export const BEFORE = { offset: 0, length: 4 * MIB, pattern: 0x11 };
export const WRITTEN = { offset: MIB, length: 65536, pattern: 0x22 };
export const WRITTEN_LATER = { offset: 2 * MIB, length: 65536, pattern: 0x33 };
/** Where nothing else is written, as on an image that is used without its overlay. */
export const ELSEWHERE = { offset: 3 * MIB, length: 65536, pattern: 0x44 };

export let libvirt: TestLibvirt;
export let count = 0;
export let directory: string;
export let disks: TestDisk[];
export let domain: TestDomain;
export let session: SnapshotSession;

/** To be called once by a test file: a VM of two disks for each of its tests. */
export function useOverlayVm(): void {
  beforeAll(async () => {
    libvirt = await TestLibvirt.start();
  });

  afterAll(() => libvirt?.close());

  beforeEach(async () => {
    count++;
    directory = path.join(libvirt.directory, `images ${count}`);
    fs.mkdirSync(directory);
    disks = await makeTwoDisks(directory, { pattern: BEFORE.pattern });
    session = new SnapshotSession(
      libvirt.virsh,
      path.join(libvirt.directory, `session-${count}`),
      `r${count}`,
    );
  });

  afterEach(async () => {
    await session.undo();
    await libvirt.remove(domain);
  });
}

/** For a test that needs other disks: before it starts the VM. */
export function setDisks(others: TestDisk[]): void {
  disks = others;
}

/** It has another name now. */
export function setDomain(renamed: TestDomain): void {
  domain = renamed;
}

export async function start(options: { transient?: boolean; devices?: string } = {}): Promise<void> {
  domain = await libvirt.define(`recovery-${count}`, disks, options);
}

export async function freezeAndWrite(): Promise<void> {
  await session.freeze(overlayProvider, domain.name);
  for (const { target } of disks) await libvirt.guestWrite(domain, target, WRITTEN);
}

/** Nothing is left of the session: only the images are there, with what the guest wrote, and the definition names them. */
export async function expectMerged(): Promise<void> {
  expect(session.journal.pending()).toEqual([]);
  expect(fs.readdirSync(directory).sort()).toEqual(['vda.qcow2', 'vdb.img']);
  for (const disk of disks) {
    expect(await hasPattern(disk.path, disk.format, WRITTEN)).toBe(true);
    expect(await hasPattern(disk.path, disk.format, { ...BEFORE, length: MIB })).toBe(true);
  }
}

export async function pathsNow(): Promise<(string | undefined)[]> {
  return (await loadDomain(libvirt.virsh, domain.name)).disks.map((disk) => disk.path);
}

export async function pathsAtNextStart(): Promise<(string | undefined)[]> {
  return (await loadInactive(libvirt.virsh, domain.uuid)).disks.map((disk) => disk.path);
}

export const images = () => disks.map((disk) => disk.path);

/** As after a reboot, or after a session that keeps its overlays: nobody holds the images. */
export async function releaseHolds({ journal, reporter } = session): Promise<void> {
  for (const entry of journal.pending().filter(({ kind }) => kind === 'hold')) {
    await overlayProvider.undo.hold!(entry, { journal, reporter });
    journal.undone(entry);
  }
}

/** What keeps the overlays, and says so. */
export async function expectKept(what: RegExp): Promise<void> {
  const errors = await session.undo();
  expect(errors.map(({ message }) => message)).toEqual(disks.map(() => expect.stringMatching(what)));
  expect(session.journal.pending().map(({ kind }) => kind)).toEqual(disks.map(() => 'overlay'));
  expect(fs.readdirSync(directory).filter((file) => file.includes('.cm-'))).toHaveLength(disks.length);
}
