import * as fs from 'node:fs';
import * as path from 'node:path';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import type { ImageReference } from '../../src/image/image-reference.js';
import { loadDomain } from '../../src/libvirt/load-domain.js';
import type { SnapshotProvider } from '../../src/snapshot/provider.js';
import { type Extent, hasPattern, type TestDomain, type TestLibvirt } from '../support/libvirt.js';
import { SnapshotSession } from '../support/snapshot-session.js';

const MIB = 1024 * 1024;
const BEFORE = 0x11;
const AFTER = 0x22;

/** What the suite needs to know of a provider. */
export interface ProviderSetup {
  readonly provider: SnapshotProvider;
  /** Starts what the tests need, and is given a directory for it. */
  start(): Promise<TestLibvirt>;
  /**
   * Makes a domain of two disks, `vda` and `vdb`, of at least 4 MiB each, that are all 0x11, in the state in which the provider
   * freezes it. `directory` is empty.
   */
  domain(libvirt: TestLibvirt, name: string, directory: string): Promise<TestDomain>;
  /** Whether the guest can write while the snapshot lasts. */
  readonly guestWrites: boolean;
  /** What else a session must leave as it was: volumes, for example. */
  inventory?(): Promise<readonly string[]>;
  /** Removes what `domain` made outside of its directory. */
  remove?(name: string): Promise<void>;
}

/** The names, sizes and inodes in a directory: what a session must leave as it was. */
function listing(directory: string): string[] {
  return fs
    .readdirSync(directory)
    .sort()
    .map((file) => {
      const { ino, size, mode } = fs.statSync(path.join(directory, file));
      return `${file} ${ino} ${mode} ${size > 0}`;
    });
}

/** Whether a frozen disk, which may be an NBD export, holds the pattern. */
async function shows({ path: file, format, nbdExport }: ImageReference, read: Extent): Promise<boolean> {
  if (nbdExport === undefined) return hasPattern(file, format, read);
  return hasPattern(`nbd+unix:///${nbdExport}?socket=${file}`, format, read);
}

/** The tests that every snapshot provider passes. */
export function snapshotProviderSuite(name: string, setup: ProviderSetup): void {
  describe(`${name}: the contract of snapshot providers`, () => {
    let libvirt: TestLibvirt;
    let count = 0;
    let domain: TestDomain;
    let directory: string;
    let session: SnapshotSession;

    // Starting a VM takes longer than all the rest, so the tests share one: each leaves it as it was, or has failed.
    beforeAll(async () => {
      libvirt = await setup.start();
      directory = path.join(libvirt.directory, 'images, "odd" & more');
      fs.mkdirSync(directory);
      domain = await setup.domain(libvirt, 'contract', directory);
    });

    afterAll(async () => {
      await libvirt?.close();
      await setup.remove?.('contract');
    });

    beforeEach(() => {
      count++;
      session = new SnapshotSession(
        libvirt.virsh,
        path.join(libvirt.directory, `session-${count}`),
        `s${count}`,
      );
    });

    afterEach(async () => {
      await session?.undo();
    });

    async function inventory(): Promise<readonly string[]> {
      return [...listing(directory), ...((await setup.inventory?.()) ?? [])];
    }

    async function definition(): Promise<string> {
      return libvirt.virsh.dumpXml(domain.uuid, { inactive: true });
    }

    it('does not refuse what it can freeze', async () => {
      const loaded = await loadDomain(libvirt.virsh, domain.name);
      for (const disk of loaded.disks) {
        expect(await setup.provider.refusal({ virsh: libvirt.virsh, domain: loaded }, disk)).toBeUndefined();
      }
    });

    it('freezes all disks asked for, and gives everything back', async () => {
      const files = await inventory();
      const xml = await definition();
      const started = Date.now();
      const snapshot = await session.freeze(setup.provider, domain.name);
      expect(snapshot.disks.map(({ target }) => target)).toEqual(['vda', 'vdb']);
      expect(snapshot.time.getTime()).toBeGreaterThanOrEqual(started);
      expect(snapshot.time.getTime()).toBeLessThanOrEqual(Date.now());
      for (const { image } of snapshot.disks) {
        expect(path.isAbsolute(image.path)).toBe(true);
        expect(await shows(image, { offset: 0, length: 4 * MIB, pattern: BEFORE })).toBe(true);
      }
      expect(await session.undo()).toEqual([]);
      expect(session.journal.pending()).toEqual([]);
      expect(await inventory()).toEqual(files);
      expect(await definition()).toBe(xml);
    });

    it('shows the disks as they were, and keeps what the guest writes meanwhile', async () => {
      if (!setup.guestWrites) return;
      const snapshot = await session.freeze(setup.provider, domain.name);
      for (const { target } of snapshot.disks) {
        await libvirt.guestWrite(domain, target, { offset: MIB, length: 65536, pattern: AFTER });
      }
      for (const { image } of snapshot.disks) {
        expect(await shows(image, { offset: 0, length: 4 * MIB, pattern: BEFORE })).toBe(true);
      }
      expect(await session.undo()).toEqual([]);
      for (const { target } of snapshot.disks) {
        await libvirt.guestVerify(domain, target, { offset: 0, length: MIB, pattern: BEFORE });
        await libvirt.guestVerify(domain, target, { offset: MIB, length: 65536, pattern: AFTER });
        await libvirt.guestWrite(domain, target, { offset: MIB, length: 65536, pattern: BEFORE });
      }
    });

    it('freezes some of the disks', async () => {
      const snapshot = await session.freeze(setup.provider, domain.name, { targets: ['vdb'] });
      expect(snapshot.disks.map(({ target }) => target)).toEqual(['vdb']);
      expect(await session.undo()).toEqual([]);
    });

    it('undoing twice changes nothing', async () => {
      await session.freeze(setup.provider, domain.name);
      const entries = session.journal.pending();
      expect(await session.undo()).toEqual([]);
      const files = await inventory();
      const xml = await definition();
      for (const entry of entries) {
        await setup.provider.undo[entry.kind]?.(entry, {
          journal: session.journal,
          reporter: session.reporter,
        });
      }
      expect(await inventory()).toEqual(files);
      expect(await definition()).toBe(xml);
    });

    it('can be done again after it was undone', async () => {
      for (let round = 0; round < 2; round++) {
        await session.freeze(setup.provider, domain.name);
        expect(await session.undo()).toEqual([]);
      }
    });

    it('an aborted freeze leaves only what the journal knows', async () => {
      const files = await inventory();
      for (const delay of [0, 20, 40, 60, 80, 120]) {
        const signal = AbortSignal.timeout(delay);
        await session.freeze(setup.provider, domain.name, { signal }).catch(() => undefined);
        expect(await session.undo()).toEqual([]);
        expect(await inventory()).toEqual(files);
      }
    });
  });
}
