import * as fs from 'node:fs';
import { describe, expect, it } from 'vitest';
import { endChainSession } from '../../src/chain/chain-session.js';
import { liveChainFile, readLiveChain } from '../../src/chain/live-chain.js';
import { commitLayers } from '../../src/chain/merge-layers.js';
import { pullLayers } from '../../src/chain/pull-layers.js';
import { openChain } from '../../src/chain/restore-point.js';
import { takePoint } from '../../src/chain/take-point.js';
import { loadDomain } from '../../src/libvirt/load-domain.js';
import { DyingJournal } from '../support/dying-journal.js';
import {
  type Contents,
  chain,
  contentsNow,
  copies,
  disksNow,
  domain,
  expectIdle,
  layers,
  libvirt,
  own,
  pathsAtNextStart,
  pathsNow,
  reporter,
  request,
  restored,
  runOnce,
  state,
  useChainVm,
  write,
  writeAndRun,
} from './chain-vm.js';

useChainVm();

const liveFile = () => liveChainFile(state, domain.name);

/** Does `work` in a process that dies. Returns whether it died before it had ended. */
async function dying(
  records: number,
  before: boolean,
  work: (journal: DyingJournal) => Promise<unknown>,
): Promise<boolean> {
  fs.mkdirSync(state.session(domain.name), { recursive: true });
  const journal = new DyingJournal(state.journal(domain.name), records, before);
  try {
    journal.intend('chain', {});
    await work(journal);
    return false;
  } catch (error) {
    if (!journal.died) throw error;
    return true;
  } finally {
    journal.close();
  }
}

async function takePointDying(records: number, before: boolean): Promise<boolean> {
  const { virsh } = libvirt;
  const loaded = await loadDomain(virsh, domain.name);
  const options = { quiesce: 'no' } as const;
  const common = { virsh, domain: loaded, disks: loaded.disks, directory: chain, full: false, options };
  const sessionId = `x${records}${before ? 'b' : 'a'}`;
  return dying(records, before, (journal) =>
    takePoint({ ...common, liveFile: liveFile(), sessionId, journal, reporter }),
  );
}

/** `chunkmount cleanup`, in another process. */
async function cleanup(): Promise<void> {
  const { name, command } = request();
  await endChainSession({ name, state, command, reporter, keepLock: false });
  fs.rmSync(state.session(domain.name), { recursive: true, force: true });
}

/** The VM runs on just the layers that are known, and there are no others. */
async function expectKnownLayers(): Promise<void> {
  const known = readLiveChain(liveFile())?.disks ?? [];
  const expected = known.map(({ base, layers: ours }) => ours.at(-1)?.path ?? base.path);
  const now = await disksNow();
  const paths = now.map((disk) => disk.path);
  expect(paths).toEqual(expected.length === 0 ? own() : expected);
  expect(await pathsAtNextStart()).toEqual(paths);
  expect(layers()).toHaveLength(known.reduce((sum, disk) => sum + disk.layers.length, 0));
  expect(now.map(({ mirror }) => mirror)).toEqual([undefined, undefined]);
}

/** Records of a snapshot of two disks and of the session's beginning: test/snapshot/overlay-crash.test.ts has them all. */
const FROZEN = 13;
const SKIPPED = 6;

const points = () => (copies().includes('chain.json') ? openChain(chain).points.length : 0);

describe('killed while a point is made', () => {
  it.each([
    ['after', false],
    ['before', true],
  ] as const)('%s each journal record: the VM is as before, or the point is complete', async (_, before) => {
    const expected: Contents[] = [];
    const accepted: number[] = [];
    for (let records = 1; ; records += records < FROZEN ? SKIPPED : 1) {
      await write();
      const contents = await contentsNow();
      const died = await takePointDying(records, before);
      // Of the processes that die with us, QEMU is one now and then.
      const crash = records % 6 === 1;
      if (crash) await libvirt.killQemu(domain);
      await cleanup();
      if (crash) await libvirt.virsh.start(domain.uuid);
      await expectKnownLayers();
      if (points() > expected.length) {
        expected.push(contents);
        accepted.push(records);
      }
      expect(copies().filter((file) => file.includes('.part'))).toEqual([]);
      // It takes a while; the next points would show it, too.
      const now = crash || records % 4 === 0 ? await contentsNow() : {};
      for (const [target, content] of Object.entries(now)) {
        expect(content.equals(contents[target]!), `${target} after ${records} records`).toBe(true);
      }
      if (!died) break;
    }
    // All from the record of its acceptance on.
    expect(accepted.length).toBeGreaterThanOrEqual(before ? 4 : 5);
    expect(accepted).toEqual(accepted.map((_value, index) => accepted[0]! + index));
    expected.push(await writeAndRun());
    expect(points()).toBe(expected.length);
    for (const number of [1, expected.length - 1, expected.length]) {
      for (const [target, content] of Object.entries(expected[number - 1]!)) {
        expect((await restored(String(number), target)).equals(content), `${target} at ${number}`).toBe(true);
      }
    }
    expectIdle();
  });

  it('the next run ends it by itself', async () => {
    await writeAndRun();
    await write();
    expect(await takePointDying(12, false)).toBe(true);
    const contents = await contentsNow();
    await runOnce();
    expect(points()).toBe(2);
    expect((await restored('2', 'vda')).equals(contents.vda!)).toBe(true);
    expect(reporter.messages.join('\n')).toContain('ending what was cut off before');
  });
});

describe('killed while layers are merged', () => {
  const only = { exclude: ['vdb'] };
  const merge = (journal: DyingJournal) =>
    commitLayers({ virsh: libvirt.virsh, domain, liveFile: liveFile(), exclude: [], journal, reporter });
  const pull = (journal: DyingJournal) =>
    pullLayers({ virsh: libvirt.virsh, domain, liveFile: liveFile(), exclude: [], journal, reporter });

  async function expectUnharmed(before: Contents): Promise<void> {
    expect((await contentsNow()).vda!.equals(before.vda!)).toBe(true);
    const [known] = readLiveChain(liveFile())!.disks;
    expect((await pathsNow())[0]).toBe(known!.layers.at(-1)?.path ?? known!.base.path);
    expect(layers()).toHaveLength(known!.layers.length);
    expectIdle();
  }

  it('by blockcommit, after each journal record of a layer below and of the one on top', async () => {
    for (let run = 0; run < 6; run++) await writeAndRun(only);
    await write();
    const before = await contentsNow();
    const left: number[] = [];
    for (let records = 2; layers().length > 1; records = records === 7 ? 2 : records + 1) {
      expect(await dying(records, false, merge)).toBe(true);
      await cleanup();
      await expectUnharmed(before);
      left.push(layers().length);
    }
    // After the first record nothing had begun.
    expect(left.slice(0, 4)).toEqual([6, 5, 4, 3]);
    for (let records = 2; records <= 8; records++) {
      expect(await dying(records, false, merge)).toBe(true);
      await cleanup();
      await expectUnharmed(before);
      expect(layers().length).toBe(records === 2 ? 1 : 0);
      if (layers().length > 0) continue;
      await runOnce(only);
    }
    expect((await restored('latest', 'vda')).equals(before.vda!)).toBe(true);
  });

  it('by blockpull: nothing is lost, and the next one ends it', async () => {
    for (let run = 0; run < 2; run++) await writeAndRun(only);
    const before = await contentsNow();
    expect(await dying(2, false, pull)).toBe(true);
    await cleanup();
    await expectUnharmed(before);
    expect(layers()).toHaveLength(2);
    // libvirt was asked, and works on while we are gone.
    expect(await dying(2, false, pull)).toBe(true);
    const args = ['--domain', domain.uuid, '--path', 'vda', '--base', own()[0]!];
    await libvirt.virsh.call('blockpull', args);
    await cleanup();
    await expectUnharmed(before);
    expect(layers()).toHaveLength(1);
    await writeAndRun(only);
    expect(await dying(3, true, pull)).toBe(true);
    await cleanup();
    expect(layers()).toHaveLength(1);
    await writeAndRun(only);
    expect((await restored('latest', 'vda')).equals((await contentsNow()).vda!)).toBe(true);
  });
});
