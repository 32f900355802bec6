import * as fs from 'node:fs';
import * as path from 'node:path';
import { pathToFileURL } from 'node:url';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { silentReporter } from '../../src/report/reporter.js';
import type { JournalData, JournalEntry } from '../../src/session/journal.js';
import { testBytes } from '../support/trees.js';
import { BootSession } from './boot-session.js';
import { built } from './built.js';
import { KIB } from './demo-tree.js';

type BootModule = typeof import('../../src/restore/boot.js');
type JournalModule = typeof import('../../src/session/journal.js');

let session: BootSession;
let boot: BootModule;
let Journal: JournalModule['Journal'];
let Tree: typeof import('../../src/restore/tree.js').Tree;
let planVm: typeof import('../../src/restore/vm-plan.js').planVm;

beforeAll(async () => {
  session = await BootSession.start();
  boot = await built<BootModule>('restore/boot');
  ({ Journal } = await built<JournalModule>('session/journal'));
  ({ Tree } = await built<typeof import('../../src/restore/tree.js')>('restore/tree'));
  ({ planVm } = await built<typeof import('../../src/restore/vm-plan.js')>('restore/vm-plan'));
});

afterAll(() => session?.close());

/** With NVRAM, so that every kind of record occurs. */
beforeEach(() => {
  const loader = path.join(session.directory, 'loader.fd');
  fs.writeFileSync(loader, Buffer.alloc(256 * KIB));
  session.fresh({
    more: '<features><acpi/></features>',
    os: `<loader readonly='yes' type='pflash'>${loader}</loader><nvram>/nowhere/mail01_VARS.fd</nvram>`,
    extras: [{ file: 'nvram.fd', kind: 'nvram', content: testBytes(256 * KIB, 31) }],
  });
});

afterEach(() => session.sweep());

const PRELOAD = pathToFileURL(path.resolve(import.meta.dirname, '../crash/die-at-record.mjs')).href;

/** The boot itself; directory and mount; two overlays and NVRAM; the VM: an intent each, and all but the first done. */
const RECORDS = 13;

/**
 * Boots as a process that is gone at its nth record: before it was written, or right after. Returns whether it died. Nothing
 * undoes what it did.
 */
async function dyingBoot(records: number, when: 'before' | 'after'): Promise<boolean> {
  let left = records;
  class DyingJournal extends Journal {
    #step<T>(record: () => T): T {
      left--;
      if (left < 0 || (when === 'before' && left === 0)) throw new Error('killed');
      const result = record();
      if (left === 0) throw new Error('killed');
      return result;
    }

    override intend(kind: string, data: JournalData): JournalEntry {
      return this.#step(() => super.intend(kind, data));
    }

    override done(entry: JournalEntry, data?: JournalData): JournalEntry {
      return this.#step(() => super.done(entry, data));
    }
  }
  const { virsh } = session.libvirt;
  const tree = Tree.open(session.tree);
  const directory = path.join(session.chunkmount.stateDirectory, 'boots', 'mail01-boot');
  fs.mkdirSync(directory, { recursive: true });
  const journal = new DyingJournal(path.join(directory, 'journal.jsonl'));
  try {
    const names = { name: undefined, otherwise: 'mail01-boot' };
    const images = { storage: session.storage, format: 'qcow2', overlay: true } as const;
    const plan = await planVm(
      virsh,
      { tree, ...names, ...images, sameIdentity: false, network: true },
      silentReporter,
    );
    const record = await boot.describeBoot(tree, plan, session.libvirt.uri);
    const log = path.join(directory, 'images.log');
    const signal = new AbortController().signal;
    await boot.buildBoot({ tree, plan, record, journal, log, transport: 'kernel', virsh, signal });
    return false;
  } catch (error) {
    if (left > 0) throw error;
    return true;
  } finally {
    journal.close();
    tree.close();
  }
}

const STEPS = Array.from({ length: RECORDS }, (_, index) => index + 1);

describe('killed while booting', () => {
  it.each(STEPS)('after journal record %i: --discard leaves nothing', async (records) => {
    expect(await dyingBoot(records, 'after')).toBe(true);
    await session.ended('discard');
    await session.expectNothing();
  });

  it.each(STEPS)('before journal record %i was written: --discard leaves nothing', async (records) => {
    expect(await dyingBoot(records, 'before')).toBe(true);
    await session.ended('discard');
    await session.expectNothing();
  });

  it('there are no more records than that', async () => {
    expect(await dyingBoot(RECORDS + 1, 'after')).toBe(false);
    expect(await session.state()).toBe('running');
    await session.ended('discard');
    await session.expectNothing();
  });

  it('before the last record: it runs, and --finish works', async () => {
    expect(await dyingBoot(RECORDS, 'before')).toBe(true);
    await session.ended('finish');
    expect(session.boots()).toEqual([]);
    await session.expectNoImages();
    expect(await session.state()).toBe('running');
  });
});

describe('the real program', () => {
  /** The signal comes when its journal has that many records. */
  async function interrupted(records: number, signal: 'SIGKILL' | 'SIGINT'): Promise<number | undefined> {
    const options = [`--storage=${session.storage}`, `--connect=${session.libvirt.uri}`];
    const { exitCode } = await session.chunkmount.start(['boot', session.tree, ...options], {
      NODE_OPTIONS: `--import=${PRELOAD}`,
      CRASH_AT: String(records),
      CRASH_COUNT: path.join(session.directory, 'count'),
      CRASH_SIGNAL: signal,
    });
    return exitCode;
  }

  it.each([1, 3, 4, 6, 10, 12])('killed at journal record %i: --discard leaves nothing', async (records) => {
    await interrupted(records, 'SIGKILL');
    expect(session.boots()).toEqual(['mail01-boot']);
    await session.ended('discard');
    await session.expectNothing();
  });

  it.each([1, 4, 8, 12])(
    'interrupted by a signal at journal record %i, it cleans up itself',
    async (records) => {
      expect(await interrupted(records, 'SIGINT')).toBe(130);
      await session.expectNothing();
    },
  );
});

describe('killed while discarding', () => {
  it.each([1, 2, 4, 6])(
    'when %i of its steps are undone: the next --discard leaves nothing',
    async (steps) => {
      await session.booted();
      const file = path.join(session.chunkmount.stateDirectory, 'boots', 'mail01-boot', 'journal.jsonl');
      const undone = () =>
        fs.existsSync(file) ? fs.readFileSync(file, 'latin1').split('"step":"undone"').length - 1 : steps;
      const command = session.chunkmount.start(['boot', '--discard', 'mail01-boot']);
      while (undone() < steps) await new Promise((resolve) => setTimeout(resolve, 1));
      command.kill('SIGKILL');
      await command;
      // After its last step only its lock can be left, which is nobody's any more: the next boot of that name takes it.
      if (session.boots().length === 0) await session.booted();
      await session.ended('discard');
      await session.expectNothing();
    },
  );
});
