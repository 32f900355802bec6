import { spawn } from 'node:child_process';
import { once } from 'node:events';
import * as fs from 'node:fs';
import * as os from 'node:os';
import * as path from 'node:path';
import fc from 'fast-check';
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest';
import { keptSnapshots } from '../../src/backup/kept-snapshots.js';
import { deviceNumber } from '../../src/host/device-number.js';
import { run } from '../../src/host/exec.js';
import { Virsh } from '../../src/libvirt/virsh.js';
import { volumeByName } from '../../src/snapshot/lvm/logical-volume.js';
import { activePool, isWithin } from '../../src/snapshot/lvm/pool.js';
import { prepareLive, thinTracker } from '../../src/tracking/thin.js';
import { mappedBytes, withoutUnmapped } from '../../src/tracking/thin-mapped.js';
import type { Facts } from '../../src/tracking/tracker.js';
import { DyingJournal } from '../support/dying-journal.js';
import { pathWithout } from '../support/path-without.js';
import { deviceMapper, program, requireAll } from '../support/requirements.js';
import { listVolumes, makePool, makeVolume, removeVolumes, VOLUME_GROUP } from '../support/volumes.js';
import { BLOCK, discardBlocks, heldIn, type Meanwhile, ThinSessions, writeBlocks } from './thin-sessions.js';

const POOL = 'tracking';
const GONE = 'the snapshot of the last session is gone';
const SET_BACK = 'the volume was set back to a snapshot (lvconvert --merge)';

/** Series of random steps: more of them find more, and take their time. */
const RUNS = Number(process.env.TRACKING_RUNS ?? 1);

const PATH = process.env.PATH ?? '';
const programs = fs.mkdtempSync(path.join(os.tmpdir(), 'cm-programs-'));
afterEach(() => uninstall());
afterAll(() => fs.rmSync(programs, { recursive: true }));

/** Puts a program of that name first on PATH. */
function install(name: string, script: string): void {
  fs.writeFileSync(path.join(programs, name), `#!/bin/sh\n${script}\n`, { mode: 0o755 });
  process.env.PATH = `${programs}:${PATH}`;
}

/** Path of the one that is installed. */
function real(name: string): string {
  return PATH.split(':')
    .map((place) => path.join(place, name))
    .find((file) => fs.existsSync(file))!;
}

function uninstall(): void {
  process.env.PATH = PATH;
  for (const name of fs.readdirSync(programs)) fs.rmSync(path.join(programs, name), { recursive: true });
}

async function poolMessage(message: string): Promise<void> {
  await run('dmsetup', ['message', `${VOLUME_GROUP}-${POOL}-tpool`, '0', message]);
}

async function lvm(program: string, ...args: string[]): Promise<void> {
  await run(program, ['--yes', '--quiet', ...args]);
}

/** In order: each test goes on from the complete session that the one before it ended with. */
describe('the tracker of thin volumes', () => {
  let disk: ThinSessions;

  beforeAll(async () => {
    const thinDelta = program('thin_delta', 'thin-provisioning-tools');
    await requireAll(deviceMapper, program('lvcreate', 'lvm2'), program('dmsetup'), thinDelta);
    await makePool(POOL, 64);
    disk = await ThinSessions.make('tracked', POOL, 4);
    disk.write(0, 16);
  });
  afterAll(async () => {
    await disk?.cleanup(true);
    disk?.dispose();
    await removeVolumes(POOL);
  });

  const volume = () => `${VOLUME_GROUP}/${disk.volume.name}`;
  const kept = () => `${VOLUME_GROUP}/${disk.kept}`;

  it('knows what was written and discarded since the last complete session, and keeps one snapshot', async () => {
    expect(await disk.reason()).toBe('there is no record of a session that read all of it');
    const [first] = await disk.snapshots();
    disk.write(3, 2);
    disk.write(40);
    expect(await disk.changed({ cutOff: true })).toBe(3);
    // What was cut off is nothing to go on from.
    expect(await disk.snapshots()).toEqual([first]);
    await lvm('lvrename', kept(), 'renamed');
    await discardBlocks(disk.volume.device, 8, 4);
    expect(await disk.changed()).toBe(7);
    expect(await listVolumes()).toEqual([disk.kept, POOL, disk.volume.name].sort());
    // Without --keep-snapshot it goes by what is there, and leaves nothing.
    expect(await disk.changed({ keep: false })).toBe(0);
    expect(await disk.snapshots()).toEqual([]);
    expect(await heldIn(POOL)).toBe('-');
  });

  it('says unknown where anything is odd', async () => {
    expect(await disk.reason()).toBe('thin: it knows nothing of the last session');
    const meanwhile = async ({ before, now, comparing }: Meanwhile) => {
      const why = async (from: Facts = before) => {
        const changes = await thinTracker.changesSince(from, now, comparing);
        return changes.kind === 'unknown' ? changes.reason : changes.ranges.length;
      };
      expect(await why()).toBe(0);
      install('thin_delta', 'echo no such thing >&2; exit 1');
      expect(await why()).toBe('thin_delta failed: no such thing');
      install('thin_delta', `${real('thin_delta')} "$@" | head -n 2`);
      expect(await why()).toBe('thin_delta gave an answer without an end');
      process.env.PATH = pathWithout(path.join(programs, 'without'), 'thin_delta').PATH;
      expect(await thinTracker.observe(comparing.disk)).toEqual({
        kind: 'none',
        reason: 'thin_delta is not installed',
      });
      // The last block of a volume may lie partly behind its end.
      const behind = '<different begin="63" length="2"/>\\n<different begin="70" length="1"/>';
      install('thin_delta', `${real('thin_delta')} "$@" | sed 's#</diff>#${behind}\\n</diff>#'`);
      expect(await thinTracker.changesSince(before, now, comparing)).toEqual({
        kind: 'known',
        ranges: [{ start: 63 * BLOCK, end: 64 * BLOCK }],
      });
      uninstall();
      const ended = { ...comparing, signal: AbortSignal.abort(new Error('ended by SIGINT')) };
      await expect(thinTracker.changesSince(before, now, ended)).rejects.toThrow('ended by SIGINT');
      await expect(withoutUnmapped(comparing.disk, ended)).rejects.toThrow('ended by SIGINT');
      const nowhere = { ...comparing, journal: undefined };
      expect(await thinTracker.changesSince(before, now, nowhere)).toMatchObject({
        reason: expect.stringContaining('only in a session'),
      });
      expect(await heldIn(POOL)).toBe('-');

      // What somebody else holds stays.
      await poolMessage('reserve_metadata_snap');
      const held = await heldIn(POOL);
      expect(await why()).toBe(`somebody else holds the metadata of the thin pool ${VOLUME_GROUP}/${POOL}`);
      expect(await heldIn(POOL)).toBe(held);
      await poolMessage('release_metadata_snap');

      await lvm('lvchange', '--permission', 'rw', kept());
      expect(await why()).toBe('the snapshot of the last session may have been written');
      await removeVolumes(disk.kept);
      expect(await why()).toBe(GONE);

      const { pool, origin, snapshot } = before as Record<
        'pool' | 'origin' | 'snapshot',
        Record<string, unknown>
      >;
      const last = (now as { pool: { transaction: number } }).pool.transaction;
      for (const [other, reason] of [
        [{ size: '4M' }, 'what it knew of the last session is damaged'],
        [{ pool: { ...pool, uuid: 'other' } }, 'the volume is in another thin pool'],
        [{ pool: { ...pool, transaction: last } }, 'the thin pool was set back'],
        [{ origin: { ...origin, transaction: 99_999 } }, SET_BACK],
        [{ origin: { ...origin, thinId: 99_999 } }, SET_BACK],
        [{ size: 65536 }, 'the volume was resized'],
        [
          { snapshot: { ...snapshot, ...origin, thinId: 99_999 } },
          'the snapshot of the last session was replaced',
        ],
        [
          { snapshot: { ...snapshot, ...origin, transaction: 99_999 } },
          'the snapshot of the last session was replaced',
        ],
        [
          { snapshot: { ...snapshot, ...origin } },
          'the snapshot of the last session is one of another volume',
        ],
      ] as const)
        expect(await why({ ...before, ...other })).toBe(reason);
      const { layers, snapshot: entry } = comparing.disk;
      const qcow2 = { ...comparing.disk, layers: layers.map((layer) => ({ ...layer, format: 'qcow2' })) };
      expect(await thinTracker.observe(qcow2)).toMatchObject({
        reason: expect.stringContaining('lies in it'),
      });
      const { device } = disk.volume;
      const itself = { ...comparing.disk, layers: layers.map((layer) => ({ ...layer, path: device })) };
      expect(await thinTracker.observe(itself)).toMatchObject({ reason: `${device} is not its snapshot` });
      const data = { ...entry!.data, origin: { name: 'other', uuid: 'other' } };
      const others = { ...comparing.disk, snapshot: { ...entry!, data } };
      expect(await thinTracker.observe(others)).toMatchObject({
        reason: 'its snapshot is one of another volume',
      });
      expect(thinTracker.stillHolds(now)).toBe(true);
      expect(thinTracker.stillHolds({ ...now, snapshot: { ...now.snapshot!, device } })).toBe(false);
      expect(thinTracker.stillHolds({ ...now, snapshot: { ...now.snapshot!, device: '/dev/none' } })).toBe(
        false,
      );
    };
    expect(await disk.changed({ meanwhile })).toBe(0);
  });

  it.each<[string, string, () => Promise<unknown>]>([
    [
      'set back to an older snapshot, whereupon LVM tells no more whose the kept one is',
      SET_BACK,
      async () => {
        await lvm('lvcreate', '--snapshot', '--name', 'older', volume());
        disk.write(1);
        await lvm('lvconvert', '--merge', `${VOLUME_GROUP}/older`);
      },
    ],
    ['set back to the kept snapshot', SET_BACK, () => lvm('lvconvert', '--merge', kept())],
    [
      'replaced by one of the same name',
      'it is another volume',
      async () => {
        await lvm('lvrename', volume(), 'replaced');
        await makeVolume(disk.volume.name, 4, { pool: POOL });
      },
    ],
  ])('a volume that was %s is read as a whole', async (_how, reason, happen) => {
    await happen();
    expect(await disk.reason()).toBe(`thin: ${reason}`);
    expect(await disk.snapshots()).toEqual([disk.kept]);
  });

  it('a kept snapshot that was made writable is left alone, and forgotten', async () => {
    await disk.session();
    const { kept: name } = disk;
    await lvm('lvchange', '--permission', 'rw', kept());
    await disk.cleanup(true);
    expect(disk.reporter.messages).toContainEqual(
      expect.stringMatching(`^warn: the LVM snapshot ${VOLUME_GROUP}/${name} of disk vda was made writable`),
    );
    expect(await disk.snapshots()).toEqual([name]);
    expect(keptSnapshots(disk)).toEqual([]);
    await removeVolumes(name);
    expect(await disk.reason()).toBe(`thin: ${GONE}`);
  });

  it('cleanup releases what a killed session held, and nothing else', async () => {
    const [last] = await disk.snapshots();
    disk.write(9);
    // The snapshot's two records, and that the metadata is to be reserved: killed before; after, in either place; before.
    for (const [records, before, held] of [
      [4, true, true],
      [4, false, true],
      [3, false, false],
    ] as const) {
      const journal = (file: string) => new DyingJournal(file, records, before);
      await expect(disk.session({ journal })).rejects.toThrow('killed');
      expect((await heldIn(POOL)) !== '-').toBe(held);
      if (held) await disk.cleanup();
    }
    expect(await heldIn(POOL)).toBe('-');
    // A program that came in between.
    await poolMessage('reserve_metadata_snap');
    const fd = fs.openSync(`/dev/mapper/${VOLUME_GROUP}-${POOL}_tmeta`, 'r');
    const other = spawn('sleep', ['600'], { stdio: [fd, 'ignore', 'ignore'] });
    const ended = once(other, 'exit');
    fs.closeSync(fd);
    await expect(disk.cleanup()).rejects.toThrow(/is held, and in use by sleep/);
    expect(await heldIn(POOL)).not.toBe('-');
    other.kill();
    await ended;
    await disk.cleanup();
    expect(await disk.snapshots()).toEqual([last]);
    expect(await disk.changed()).toBe(1);
  });

  it('two volumes of a pool are compared one after the other', async () => {
    const other = await ThinSessions.make('other', POOL, 4);
    await other.session();
    disk.write(5);
    other.write(6, 2);
    expect(await Promise.all([disk.changed(), other.changed()])).toEqual([1, 2]);
    await other.cleanup(true);
    await removeVolumes('other');
    other.dispose();
  });

  it('a session waits for others of its pool as long as they may take, and estimate does not', async () => {
    const meanwhile = async ({ before, now, comparing }: Meanwhile) => {
      const layers = comparing.disk.layers.map((layer) => ({ ...layer, path: disk.volume.device }));
      const live = { virsh: new Virsh({}), uuid: '' };
      const estimated = { ...comparing, disk: { ...comparing.disk, snapshot: undefined, live, layers } };
      const observed = await thinTracker.observe(estimated.disk);
      if (observed.kind === 'none') throw new Error(observed.reason);
      const why = `the metadata of the thin pool ${VOLUME_GROUP}/${POOL} is in use at this moment`;
      // What a VM wrote is in the host's memory as long as somebody has the volume open.
      const fd = fs.openSync(disk.volume.device, 'r+');
      try {
        for (const block of [50, 51]) {
          const mapped = await mappedBytes(layers);
          fs.writeSync(fd, Buffer.alloc(BLOCK, 0x55), 0, BLOCK, block * BLOCK);
          expect(await mappedBytes(layers)).toBe(mapped);
          if (block === 50) await prepareLive(estimated.disk);
          else await thinTracker.observe(estimated.disk);
          expect(await mappedBytes(layers)).toBe(mapped! + BLOCK);
        }
      } finally {
        fs.closeSync(fd);
      }
      // As if somebody else needed ten minutes; the third argument is how long is waited.
      install('flock', `if [ "$3" -lt 600 ]; then sleep "$3"; exit 75; fi; exec ${real('flock')} "$@"`);
      expect(await thinTracker.changesSince(before, now, comparing)).toEqual({ kind: 'known', ranges: [] });
      const began = Date.now();
      expect(await thinTracker.changesSince(before, observed.facts, estimated)).toEqual({
        kind: 'unknown',
        reason: expect.stringContaining(why),
      });
      await withoutUnmapped(estimated.disk, estimated);
      expect(disk.reporter.messages.at(-1)).toContain(why);
      expect(Date.now() - began).toBeLessThan(60_000);
      uninstall();
    };
    expect(await disk.changed({ meanwhile })).toBe(0);
  });

  it('a volume that reads from outside of its pool is noticed', async () => {
    const group = (name: string) => `${VOLUME_GROUP}/${name}`;
    await makeVolume('outside', 4);
    await lvm('lvchange', '--permission', 'r', group('outside'));
    await lvm('lvchange', '--activate', 'n', group('outside'));
    await lvm('lvcreate', '--snapshot', '--thinpool', group(POOL), '--name', 'partly', group('outside'));
    for (const [name, within] of [
      ['partly', false],
      [disk.volume.name, true],
    ] as const) {
      const { device, poolUuid, thinId } = (await volumeByName(VOLUME_GROUP, name))!;
      const number = deviceNumber(fs.statSync(device, { bigint: true }).rdev);
      const pool = (await activePool(poolUuid!))!;
      expect(await isWithin(number, pool, thinId!)).toBe(within);
      expect(await isWithin(number, pool, thinId! + 1)).toBe(false);
      for (const other of [
        { ...pool.device, major: 1 },
        { ...pool.device, minor: 255 },
      ])
        expect(await isWithin(number, { ...pool, device: other }, thinId!)).toBe(false);
    }
    const meanwhile = async ({ before, now, comparing }: Meanwhile) => {
      const device = `/dev/${group('partly')}`;
      const outside = 'a part of the volume lies outside of its thin pool';
      const partly = { ...now, snapshot: { ...now.snapshot!, device } };
      expect(await thinTracker.changesSince(before, partly, comparing)).toMatchObject({ reason: outside });
      const layers = comparing.disk.layers.map((layer) => ({ ...layer, path: device }));
      expect(await mappedBytes(layers)).toBeUndefined();
      const live = { virsh: new Virsh({}), uuid: '' };
      await withoutUnmapped({ ...comparing.disk, snapshot: undefined, live, layers }, comparing);
      expect(disk.reporter.messages.at(-1)).toContain(outside);
    };
    expect(await disk.changed({ meanwhile })).toBe(2);
    await removeVolumes('partly', 'outside');
  });

  it('never hides a change, whatever happens', async () => {
    const at = fc.record({ first: fc.nat(60), count: fc.integer({ min: 1, max: 4 }) });
    const step = fc.oneof(
      { weight: 3, arbitrary: fc.record({ kind: fc.constant('write' as const), at }) },
      fc.record({ kind: fc.constant('discard' as const), at }),
      fc.record({ kind: fc.constant('set back' as const), at }),
      fc.record({ kind: fc.constant('killed' as const), records: fc.integer({ min: 1, max: 8 }) }),
      { weight: 3, arbitrary: fc.record({ kind: fc.constant('session' as const), cutOff: fc.boolean() }) },
    );
    const property = fc.asyncProperty(fc.array(step, { minLength: 4, maxLength: 6 }), async (steps) => {
      for (const given of steps) {
        const { volume } = disk;
        if (given.kind === 'write') writeBlocks(volume.device, given.at.first, given.at.count);
        if (given.kind === 'discard') await discardBlocks(volume.device, given.at.first, given.at.count);
        if (given.kind === 'set back') {
          await lvm('lvcreate', '--snapshot', '--name', 'before', `${VOLUME_GROUP}/${volume.name}`);
          writeBlocks(volume.device, given.at.first, given.at.count);
          await lvm('lvconvert', '--merge', `${VOLUME_GROUP}/before`);
        }
        if (given.kind === 'killed') {
          const journal = (file: string) => new DyingJournal(file, given.records);
          await disk.session({ journal }).catch(() => undefined);
          await disk.cleanup();
        }
        if (given.kind === 'session') await disk.session({ cutOff: given.cutOff });
      }
      await disk.session();
      expect(await heldIn(POOL)).toBe('-');
      expect(await disk.snapshots()).toEqual([disk.kept]);
    });
    await fc.assert(property, { numRuns: RUNS, endOnFailure: true });
  });
});
