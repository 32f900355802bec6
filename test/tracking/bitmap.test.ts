import * as fs from 'node:fs';
import * as path from 'node:path';
import fc from 'fast-check';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { ExtentMapBuilder } from '../../src/image/extent-map-builder.js';
import { Virsh } from '../../src/libvirt/virsh.js';
import { silentReporter } from '../../src/report/reporter.js';
import type { JournalEntry } from '../../src/session/journal.js';
import { identityOf } from '../../src/snapshot/image-identity.js';
import type { PullRecord } from '../../src/snapshot/pull/record.js';
import { bitmapTracker } from '../../src/tracking/bitmap.js';
import type { Facts, TrackedDisk } from '../../src/tracking/tracker.js';
import { temporaryDirectory } from '../support/images.js';

let directory: string;
let backing: string;

beforeAll(() => {
  directory = temporaryDirectory();
  backing = path.join(directory, 'base.qcow2');
  fs.writeFileSync(backing, 'base');
});

afterAll(() => fs.rmSync(directory, { recursive: true }));

/** As the journal has it of a disk in a job that goes on from checkpoint `cm-1`. */
function record(): PullRecord {
  return {
    session: 's2',
    domain: { uuid: '7170f606-c6d8-44cc-852e-2667f46db264', name: 'mail01' },
    target: 'vda',
    scratch: path.join(directory, 'scratch'),
    socket: path.join(directory, 'nothing-listens'),
    qemu: { pid: 1, startTime: 1, bootId: 'x' },
    image: {
      path: path.join(directory, 'vda.qcow2'),
      format: 'qcow2',
      identity: identityOf(backing)!,
      backing: [{ path: backing, format: 'qcow2' }],
    },
    checkpoint: 'cm-2',
    since: 'cm-1',
    snapshots: 0,
  };
}

function disk(change: Partial<PullRecord> = {}, kind = 'pull', size = 1024): TrackedDisk {
  const map = new ExtentMapBuilder();
  map.addZeros(size);
  const snapshot: JournalEntry = { seq: 1, kind, data: { ...record(), ...change }, done: true };
  return { target: 'vda', layers: [], sources: [], extents: map.finish(), since: 0, snapshot, keep: false };
}

async function facts(one: TrackedDisk): Promise<Facts> {
  const observation = await bitmapTracker.observe(one);
  if (observation.kind === 'none') throw new Error(observation.reason);
  expect(observation.lasting).toBe(true);
  return observation.facts;
}

async function changes(before: Facts, now: TrackedDisk) {
  return bitmapTracker.changesSince(before, await facts(now), { disk: now, reporter: silentReporter });
}

/** The facts of the session that made cm-1. */
function base(change: Partial<PullRecord> = {}): Promise<Facts> {
  return facts(disk({ checkpoint: 'cm-1', since: undefined, ...change }));
}

const image = () => record().image;
const layer = (file: string, format: string) => ({ path: file, format, device: false, fileSize: 4 });

describe('it knows nothing', () => {
  it.each<[string, () => Promise<Facts>, () => TrackedDisk, RegExp]>([
    ['of another VM', base, () => disk({ domain: { uuid: 'x', name: 'mail01' } }), /another VM/],
    ['of another image', base, () => disk({ image: { ...image(), path: '/x' } }), /is not the one/],
    [
      'of an image that was replaced',
      base,
      () => disk({ image: { ...image(), identity: { ...image().identity, inode: '1' } } }),
      /is not the one/,
    ],
    ['of a disk that was resized', base, () => disk({}, 'pull', 2048), /resized/],
    ['with internal snapshots then', () => base({ snapshots: 1 }), () => disk(), /internal snapshots/],
    ['with internal snapshots now', base, () => disk({ snapshots: 1 }), /internal snapshots/],
    ['of a job that was not looked at', base, () => disk({ snapshots: undefined }), /internal snapshots/],
    ['of a longer chain', () => base({ image: { ...image(), backing: [] } }), () => disk(), /backing files/],
    ['since another checkpoint', base, () => disk({ since: 'cm-0' }), /does not go on from checkpoint cm-1/],
    ['when libvirt refused', base, () => disk({ since: undefined, notSince: 'it said no' }), /it said no/],
    ['when nothing serves the bitmap', base, () => disk(), /cannot be read/],
  ])('%s', async (_, before, now, reason) => {
    expect(await changes(await before(), now())).toEqual({
      kind: 'unknown',
      reason: expect.stringMatching(reason),
    });
  });

  it('when a backing file was written', async () => {
    const before = await base();
    fs.appendFileSync(backing, 'more');
    expect(await changes(before, disk())).toMatchObject({
      reason: expect.stringContaining('has another size'),
    });
  });

  it('from damaged facts, whatever they are', async () => {
    const now = disk();
    await fc.assert(
      fc.asyncProperty(fc.dictionary(fc.string(), fc.anything()), async (damaged) => {
        expect((await changes(damaged, now)).kind).toBe('unknown');
      }),
    );
  });

  it.each([
    ['without a session', () => ({ ...disk(), snapshot: undefined }), /only the VM that runs on it/],
    [
      'of a block device below the image of a VM that goes on',
      () => ({
        ...disk(),
        snapshot: undefined,
        live: { virsh: new Virsh({}), uuid: 'x' },
        layers: [layer(backing, 'qcow2'), layer('/dev/null', 'raw')],
      }),
      /\/dev\/null is a block device/,
    ],
    ['by another kind of snapshot', () => disk({}, 'overlay'), /not frozen by a backup job/],
    [
      'of a block device below',
      () => disk({ image: { ...image(), backing: [{ path: '/dev/null', format: 'raw' }] } }),
      /\/dev\/null is a block device/,
    ],
    [
      'of what is below and not on this host',
      () => disk({ image: { ...image(), backing: undefined } }),
      /what its image lies on is not on this host/,
    ],
    ['without a checkpoint', () => disk({ checkpoint: undefined, noCheckpoint: 'it is raw' }), /it is raw/],
  ])('%s', async (_, one, reason) => {
    expect(await bitmapTracker.observe(one())).toEqual({
      kind: 'none',
      reason: expect.stringMatching(reason),
    });
  });
});

it('knows of an image that lies on nothing, or on files', async () => {
  for (const files of [[], image().backing]) {
    const { backing: states } = await facts(disk({ image: { ...image(), backing: files } }));
    expect(states).toHaveLength(files!.length);
  }
});
