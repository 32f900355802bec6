import * as fs from 'node:fs';
import * as path from 'node:path';
import fc from 'fast-check';
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest';
import { locateDisk } from '../../src/backup/prepare-disks.js';
import { run } from '../../src/host/exec.js';
import type { ExtentMap } from '../../src/image/extent-map.js';
import { Virsh } from '../../src/libvirt/virsh.js';
import { Journal } from '../../src/session/journal.js';
import { createThin, volumeByName } from '../../src/snapshot/lvm/logical-volume.js';
import { LVM_KIND } from '../../src/snapshot/watched-kinds.js';
import { mappedBytes, withoutUnmapped } from '../../src/tracking/thin-mapped.js';
import { temporaryDirectory } from '../support/images.js';
import { deviceMapper, program, requireAll } from '../support/requirements.js';
import { RecordingReporter } from '../support/snapshot-session.js';
import { makePool, makeVolume, removeVolumes, VOLUME_GROUP } from '../support/volumes.js';
import { BLOCK, discardBlocks, heldIn, writeBlocks } from './thin-sessions.js';

const POOL = 'mapped';
const NAME = 'sparse';
const SNAPSHOT = 'frozen';
const MIB = 8;
const BLOCKS = (MIB * 1024 * 1024) / BLOCK;
const DEVICE = `/dev/${VOLUME_GROUP}/${NAME}`;

/** Series of random writes and discards: more of them find more, and take their time. */
const RUNS = Number(process.env.TRACKING_RUNS ?? 2);

describe('the blocks that a thin pool has of a frozen volume', () => {
  const directory = temporaryDirectory();
  const { PATH } = process.env;
  let journal: Journal | undefined;
  let reporter: RecordingReporter;
  let frozen = 0;

  beforeAll(async () => {
    const thinDelta = program('thin_delta', 'thin-provisioning-tools');
    await requireAll(deviceMapper, program('lvcreate', 'lvm2'), program('dmsetup'), thinDelta);
    await makePool(POOL, 64);
    await makeVolume(NAME, MIB, { pool: POOL });
  });
  afterEach(thaw);
  afterAll(async () => {
    await removeVolumes(POOL);
    fs.rmSync(directory, { recursive: true });
  });

  /** Puts a program in the place of thin_delta; `$real` is that. */
  function install(script: string): void {
    const real = PATH!
      .split(':')
      .map((place) => path.join(place, 'thin_delta'))
      .find((file) => fs.existsSync(file));
    fs.writeFileSync(path.join(directory, 'thin_delta'), `#!/bin/sh\nreal=${real}\n${script}\n`, {
      mode: 0o755,
    });
    process.env.PATH = `${directory}:${PATH}`;
  }

  /** Makes a snapshot, as a session records it. */
  async function freeze(): Promise<string> {
    const origin = (await volumeByName(VOLUME_GROUP, NAME))!;
    await createThin({ origin, name: SNAPSHOT });
    const { uuid, device } = (await volumeByName(VOLUME_GROUP, SNAPSHOT))!;
    reporter = new RecordingReporter();
    journal = new Journal(path.join(directory, `${++frozen}.jsonl`));
    const made = { session: 's', target: 'vda', group: VOLUME_GROUP, name: SNAPSHOT, thin: true };
    const entry = journal.intend(LVM_KIND, { ...made, origin: { name: NAME, uuid: origin.uuid } });
    journal.done(entry, { uuid });
    return device;
  }

  async function thaw(): Promise<void> {
    process.env.PATH = PATH;
    if (journal === undefined) return;
    journal.close();
    journal = undefined;
    await removeVolumes(SNAPSHOT);
  }

  async function located(device: string) {
    const disk = { target: 'vda', image: { path: device, format: 'raw' }, bus: null, snapshot: 'lvm' };
    return locateDisk(disk, { sessionDirectory: directory, journal: journal!, reporter });
  }

  /** Blocks that are to be read; throws if one of the others holds anything. */
  function blocksToRead(extents: ExtentMap, device: string): number[] {
    const content = fs.readFileSync(device);
    expect(extents.size).toBe(content.length);
    const read: number[] = [];
    for (let block = 0; block < BLOCKS; block++) {
      if (!extents.isZero(block * BLOCK, BLOCK)) read.push(block);
      else
        expect(content.subarray(block * BLOCK, (block + 1) * BLOCK).some((byte) => byte !== 0)).toBe(false);
    }
    return read;
  }

  it('are those that are read, as they were when it was frozen', async () => {
    // Nothing was written yet.
    let device = await freeze();
    expect(blocksToRead((await located(device)).extents, device)).toEqual([]);
    await thaw();

    writeBlocks(DEVICE, 5, 3);
    writeBlocks(DEVICE, BLOCKS - 1);
    await discardBlocks(DEVICE, 6);
    device = await freeze();
    writeBlocks(DEVICE, 50);
    await discardBlocks(DEVICE, 5);
    const { extents } = await located(device);
    expect(blocksToRead(extents, device)).toEqual([5, 7, BLOCKS - 1]);
    const told = `disk vda: its thin pool has ${3 * BLOCK} bytes of it, in ${extents.count} extents`;
    expect(reporter.messages).toContain(`debug: ${told}`);

    // `estimate` has the volume itself, as it is now.
    const { layers, extents: whole } = await located(DEVICE);
    expect(whole.dataBytes).toBe(whole.size);
    expect(await mappedBytes(layers)).toBe(3 * BLOCK);
    const live = { virsh: new Virsh({}), uuid: '' };
    const now = await withoutUnmapped({ target: 'vda', layers, extents: whole, live }, { journal, reporter });
    expect(blocksToRead(now, DEVICE)).toEqual([7, 50, BLOCKS - 1]);
    expect(await heldIn(POOL)).toBe('-');
    expect(journal!.pending().map(({ kind }) => kind)).toEqual([LVM_KIND]);
  });

  it('are all of them where anything is odd', async () => {
    const device = await freeze();
    const { layers } = await located(device);
    const { extents } = await located(DEVICE);
    expect(reporter.messages.at(-1)).toContain(`${DEVICE} is not its snapshot`);
    const given = { journal, reporter };
    const zeros = path.join(directory, 'larger.img');
    fs.writeFileSync(zeros, '');
    fs.truncateSync(zeros, 2 * MIB * 1024 * 1024);
    const [snapshot] = journal!.pending();
    /** Why nothing is known, having seen that everything is read. */
    const why = async (changed: Partial<Parameters<typeof withoutUnmapped>[0]> = {}) => {
      const disk = { target: 'vda', layers, extents, snapshot, ...changed };
      expect(await withoutUnmapped(disk, given)).toBe(extents);
      return reporter.messages.at(-1)!.replace(/^debug: disk vda: unmapped blocks are read, too: /, '');
    };
    install(`"$real" "$@" | grep -v 'begin="7"'`);
    expect(await why()).toMatch(/^thin_delta told \d+ bytes up to \d+, the kernel \d+ up to \d+$/);
    install(`"$real" "$@" | sed 's/begin="127"/begin="126"/'`);
    expect(await why()).toMatch(/^thin_delta told (\d+) bytes up to \d+, the kernel \1 up to \d+$/);
    install(`"$real" "$@" | head -n 3`);
    expect(await why()).toBe('thin_delta gave an answer without an end');
    install('echo no such thing >&2; exit 1');
    expect(await why()).toBe('thin_delta failed: no such thing');
    process.env.PATH = PATH;

    const message = (text: string) => run('dmsetup', ['message', `${VOLUME_GROUP}-${POOL}-tpool`, '0', text]);
    await message('reserve_metadata_snap');
    expect(await why()).toContain('somebody else holds the metadata');
    await message('release_metadata_snap');

    expect(await why({ layers: layers.map((layer) => ({ ...layer, format: 'qcow2' })) })).toContain(
      'lies in it',
    );
    expect(await mappedBytes(layers.map((layer) => ({ ...layer, format: 'qcow2' })))).toBeUndefined();
    const larger = await locateDisk(
      { target: 'vda', image: { path: zeros, format: 'raw' }, bus: null, snapshot: 'none' },
      { sessionDirectory: directory, journal: journal!, reporter },
    );
    expect(await withoutUnmapped({ target: 'vda', layers, extents: larger.extents, snapshot }, given)).toBe(
      larger.extents,
    );
    expect(reporter.messages.at(-1)).toContain('has another size than LVM says');
    expect(await why({ snapshot: undefined })).toBe('no LVM snapshot freezes it');
    const { data } = snapshot!;
    expect(await why({ snapshot: { ...snapshot!, data: { ...data, uuid: 'other' } } })).toContain(
      'is not its snapshot',
    );
    await run('lvchange', ['--permission', 'rw', `${VOLUME_GROUP}/${SNAPSHOT}`]);
    expect(await why()).toContain('is not its snapshot');
    await run('lvchange', ['--permission', 'r', `${VOLUME_GROUP}/${SNAPSHOT}`]);
    await thaw();

    writeBlocks(DEVICE, 0, BLOCKS - 4);
    await located(await freeze());
    expect(reporter.messages.at(-1)).toContain('nearly all of it is mapped');
    expect(await heldIn(POOL)).toBe('-');
  });

  it('never leave out a byte that was written', async () => {
    await discardBlocks(DEVICE, 0, BLOCKS);
    const step = fc.record({
      discard: fc.boolean(),
      first: fc.nat(BLOCKS - 8),
      count: fc.integer({ min: 1, max: 8 }),
    });
    const property = fc.asyncProperty(fc.array(step, { minLength: 4, maxLength: 12 }), async (steps) => {
      for (const { discard, first, count } of steps) {
        if (discard) await discardBlocks(DEVICE, first, count);
        else writeBlocks(DEVICE, first, count);
      }
      const device = await freeze();
      blocksToRead((await located(device)).extents, device);
      expect(reporter.messages.join('\n')).toContain('its thin pool has');
      await thaw();
    });
    await fc.assert(property, { numRuns: RUNS, endOnFailure: true });
  });
});
