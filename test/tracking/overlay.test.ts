import * as fs from 'node:fs';
import * as path from 'node:path';
import { execa } from 'execa';
import fc from 'fast-check';
import { afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { inspectImage } from '../../src/image/inspect.js';
import { silentReporter } from '../../src/report/reporter.js';
import type { JournalData, JournalEntry } from '../../src/session/journal.js';
import { identityOf, writeMark } from '../../src/snapshot/image-identity.js';
import { OVERLAY_KIND } from '../../src/snapshot/watched-kinds.js';
import { overlayTracker } from '../../src/tracking/overlay.js';
import type { Changes, Facts, TrackedDisk } from '../../src/tracking/tracker.js';
import { temporaryDirectory } from '../support/images.js';
import { program, requireAll } from '../support/requirements.js';

const SIZE = 1024 * 1024;
const CLUSTER = 64 * 1024;

let directory: string;
/** An overlay on an image of the user's, which lies on a template. */
let overlay: string;
let base: string;
let template: string;

const qemuImg = (...args: string[]) => execa('qemu-img', args);
const qemuIo = (file: string, format: string, ...commands: string[]) =>
  execa('qemu-io', ['-d', 'unmap', '-f', format, ...commands.flatMap((command) => ['-c', command]), file]);

beforeAll(() => requireAll(program('qemu-img', 'qemu-utils')));

beforeEach(async () => {
  directory = temporaryDirectory();
  [overlay, base, template] = ['overlay.qcow2', 'base.qcow2', 'template.raw'].map((name) =>
    path.join(directory, name),
  ) as [string, string, string];
  await qemuImg('create', '-q', '-f', 'raw', template, String(SIZE));
  await qemuIo(template, 'raw', `write -P 1 0 ${SIZE}`);
  await qemuImg('create', '-q', '-f', 'qcow2', '-b', template, '-F', 'raw', base);
  await qemuIo(base, 'qcow2', `write -P 2 0 ${SIZE / 2}`);
});

afterEach(() => fs.rmSync(directory, { recursive: true }));

function entry(data: JournalData = {}): JournalEntry {
  const known = {
    session: 'first',
    target: 'vda',
    overlay,
    base: { path: base, format: 'qcow2', identity: identityOf(base) },
    file: identityOf(overlay),
    made: true,
    baseMark: writeMark(base),
    definition: {},
  };
  return { seq: 1, kind: OVERLAY_KIND, done: true, data: { ...known, ...data } };
}

async function diskOf(image: string, given: Partial<TrackedDisk> = {}): Promise<TrackedDisk> {
  const { layers, sources, extents, own } = await inspectImage(
    { path: image, format: 'qcow2' },
    { reporter: silentReporter, own: true },
  );
  return { target: 'vda', layers, sources, extents, own, since: Date.now(), keep: true, ...given };
}

async function factsOf(disk: TrackedDisk): Promise<Facts> {
  const observation = await overlayTracker.observe(disk);
  if (observation.kind === 'none') throw new Error(observation.reason);
  return JSON.parse(JSON.stringify(observation.facts)) as Facts;
}

/** The first session: it freezes the base, and keeps the overlay. */
async function first(): Promise<{ facts: Facts; kept: JournalEntry }> {
  await qemuImg('create', '-q', '-f', 'qcow2', '-b', base, '-F', 'qcow2', overlay);
  const kept = entry();
  return { facts: await factsOf(await diskOf(base, { snapshot: kept })), kept };
}

/** The second one, which freezes the overlay. */
async function second(facts: Facts, kept: readonly JournalEntry[]): Promise<Changes> {
  const disk = await diskOf(overlay, { kept, keep: false });
  const now = await overlayTracker.observe(disk);
  if (now.kind === 'none') return { kind: 'unknown', reason: now.reason };
  return overlayTracker.changesSince(facts, now.facts, { disk, reporter: silentReporter });
}

const operation = fc.record({
  command: fc.constantFrom('write -P 7', 'write -z', 'write -z -u', 'discard'),
  sector: fc.nat(SIZE / 512 - 1),
  sectors: fc.integer({ min: 1, max: 300 }),
});

it('whatever the guest wrote or discarded: what is not in the ranges is as it was', async () => {
  const { facts, kept } = await first();
  const before = path.join(directory, 'before.raw');
  const after = path.join(directory, 'after.raw');
  await qemuImg('convert', '-f', 'qcow2', '-O', 'raw', base, before);
  await fc.assert(
    fc.asyncProperty(fc.array(operation, { minLength: 1, maxLength: 6 }), async (operations) => {
      const commands = operations.map(({ command, sector, sectors }) => {
        const length = Math.min(sectors, SIZE / 512 - sector) * 512;
        return `${command} ${sector * 512} ${length}`;
      });
      await qemuIo(overlay, 'qcow2', ...commands);
      const changes = await second(facts, [kept]);
      if (changes.kind === 'unknown') throw new Error(changes.reason);
      await qemuImg('convert', '-f', 'qcow2', '-O', 'raw', overlay, after);
      const [old, now] = [fs.readFileSync(before), fs.readFileSync(after)];
      for (let at = 0; at < SIZE; at += 512) {
        const covered = changes.ranges.some(({ start, end }) => start <= at && at + 512 <= end);
        if (!covered)
          expect(now.subarray(at, at + 512).equals(old.subarray(at, at + 512)), `${at}`).toBe(true);
      }
    }),
    { numRuns: 12 },
  );
}, 120_000);

it('an overlay on which nothing was written has no ranges; a cluster of it is one', async () => {
  const { facts, kept } = await first();
  expect(await second(facts, [kept])).toEqual({ kind: 'known', ranges: [] });
  await qemuIo(overlay, 'qcow2', `write -P 9 ${3 * CLUSTER + 512} 512`);
  const ranges = [{ start: 3 * CLUSTER, end: 4 * CLUSTER }];
  expect(await second(facts, [kept])).toEqual({ kind: 'known', ranges });
});

it('an overlay that was merged from below by us: its base is known by what is recorded of that', async () => {
  const { facts: before } = await first();
  const next = path.join(directory, 'next.qcow2');
  await qemuIo(overlay, 'qcow2', 'write -P 9 0 64k');
  await qemuImg('create', '-q', '-f', 'qcow2', '-b', overlay, '-F', 'qcow2', next);
  const lower = overlay;
  const made = entry({ session: 'second', overlay: next, file: identityOf(next) });
  const facts = await factsOf(await diskOf(overlay, { snapshot: made, kept: [entry()] }));
  expect(before).not.toEqual(facts);
  await qemuImg('commit', '-q', '-d', '-f', 'qcow2', lower);
  await qemuImg('rebase', '-u', '-f', 'qcow2', '-b', base, '-F', 'qcow2', next);
  await qemuIo(next, 'qcow2', `write -P 9 ${5 * CLUSTER} 512`);
  overlay = next;
  const stale = { ...made.data };
  const renewed = { ...stale, base: entry().data.base, baseMark: writeMark(base) };
  expect(await second(facts, [{ ...made, data: renewed }])).toEqual({
    kind: 'known',
    ranges: [{ start: 5 * CLUSTER, end: 6 * CLUSTER }],
  });
  // Nobody saw how the merge ended.
  expect(await second(facts, [{ ...made, data: { ...renewed, mergeUnseen: true } }])).toMatchObject({
    reason: expect.stringMatching(/base\.qcow2 may have been written by others/),
  });
});

describe('nothing is known, when', () => {
  it.each<
    [what: string, odd: (kept: JournalEntry) => Promise<JournalEntry[]> | JournalEntry[], reason: RegExp]
  >([
    ['nothing is recorded of the overlay', () => [], /no overlay is kept/],
    [
      'the base was written',
      async (kept) => {
        await qemuIo(base, 'qcow2', 'write -P 5 0 512');
        return [kept];
      },
      /base\.qcow2 may have been written by others/,
    ],
    [
      'the base was written, and its mark is recorded anew',
      async (kept) => {
        await qemuIo(base, 'qcow2', 'write -P 5 0 512');
        return [{ ...kept, data: { ...kept.data, baseMark: writeMark(base) } }];
      },
      /base\.qcow2 was written/,
    ],
    [
      'the base was replaced by its copy',
      (kept) => {
        fs.cpSync(base, `${base}.copy`, { preserveTimestamps: true });
        fs.renameSync(`${base}.copy`, base);
        return [kept];
      },
      /lies on another base/,
    ],
    [
      'what lies below the base was written',
      async (kept) => {
        await qemuIo(template, 'raw', 'write -P 5 0 512');
        return [kept];
      },
      /template\.raw may have been written/,
    ],
    [
      'the overlay was replaced by its copy',
      (kept) => {
        fs.copyFileSync(overlay, `${overlay}.copy`);
        fs.renameSync(`${overlay}.copy`, overlay);
        return [kept];
      },
      /no overlay is kept/,
    ],
    [
      'the overlay was pulled',
      async (kept) => {
        await qemuImg('rebase', '-f', 'qcow2', '-b', '', overlay);
        return [kept];
      },
      /has no base any more/,
    ],
    [
      'the overlay was put onto what lies below its base',
      async (kept) => {
        await qemuImg('rebase', '-f', 'qcow2', '-b', template, '-F', 'raw', overlay);
        return [kept];
      },
      /lies on another base/,
    ],
    [
      'it was merged',
      (kept) => [{ ...kept, data: { ...kept.data, merged: true } }],
      /may have been written by others/,
    ],
    [
      'it was being merged',
      (kept) => [{ ...kept, data: { ...kept.data, committing: true } }],
      /may have been written by others/,
    ],
    [
      'a block device was written before the host was started again',
      (kept) => [{ ...kept, data: { ...kept.data, baseMark: undefined } }],
      /may have been written by others/,
    ],
    ['the entry is damaged', (kept) => [{ ...kept, data: { ...kept.data, file: 5 } }], /no overlay is kept/],
  ])('%s', async (_, odd, reason) => {
    const { facts, kept } = await first();
    expect(await second(facts, await odd(kept))).toEqual({
      kind: 'unknown',
      reason: expect.stringMatching(reason),
    });
  });

  type Layers = readonly Readonly<Record<string, unknown>>[];
  const same = (layers: Layers) => layers;
  const changed = (number: number, change: Readonly<Record<string, unknown>>) => (layers: Layers) =>
    layers.map((layer, at) => (at === number ? { ...layer, ...change } : layer));

  // Layers, top first: the base and the template; now the overlay is above them.
  it.each<[what: string, then: (layers: Layers) => Layers, now: (layers: Layers) => Layers, reason: RegExp]>([
    ['a layer was put below', (layers) => layers.slice(0, 1), same, /more or fewer layers/],
    ['the base was read in another format', changed(0, { format: 'raw' }), same, /base\.qcow2 is another/],
    ['a layer was read in another format', changed(1, { format: 'qcow2' }), same, /template\.raw is another/],
    ['the overlay is read in another format', same, changed(0, { format: 'raw' }), /was replaced/],
    [
      'a layer does not tell whether it was written',
      changed(1, { mark: null }),
      changed(2, { mark: null }),
      /template\.raw may have been written/,
    ],
  ])('%s', async (_, then, now, reason) => {
    const { facts, kept } = await first();
    const disk = await diskOf(overlay, { kept: [kept], keep: false });
    const found = await factsOf(disk);
    const before = { ...facts, layers: then(facts.layers as Layers) };
    const today = { ...found, layers: now(found.layers as Layers) };
    expect(await overlayTracker.changesSince(before, today, { disk, reporter: silentReporter })).toEqual({
      kind: 'unknown',
      reason: expect.stringMatching(reason),
    });
  });

  it('what it knew of the last session is damaged, or is of one that kept nothing', async () => {
    const { facts, kept } = await first();
    const damaged = { ...facts, layers: 5 };
    expect(await second(damaged, [kept])).toMatchObject({ reason: expect.stringContaining('damaged') });
    const { overlay: _, ...without } = facts;
    expect(await second(without, [kept])).toMatchObject({ reason: expect.stringContaining('was not kept') });
  });
});

it('facts last only when the overlay is to be kept, and the VM starts with it', async () => {
  const { kept } = await first();
  const lasting = async (given: Partial<TrackedDisk>) => {
    const observation = await overlayTracker.observe(await diskOf(base, given));
    return observation.kind === 'facts' && observation.lasting;
  };
  expect(await lasting({ snapshot: kept })).toBe(true);
  expect(await lasting({ snapshot: kept, keep: false })).toBe(false);
  const { definition: _, ...transient } = kept.data;
  expect(await lasting({ snapshot: { ...kept, data: transient } })).toBe(false);
  expect(await lasting({ snapshot: { ...kept, kind: 'lvm-snapshot' } })).toBe(false);
});

it('facts hold as long as nothing that was frozen is written', async () => {
  const { facts } = await first();
  await qemuIo(overlay, 'qcow2', 'write -P 5 0 512');
  expect(overlayTracker.stillHolds(facts)).toBe(true);
  await qemuIo(template, 'raw', 'write -P 5 0 512');
  expect(overlayTracker.stillHolds(facts)).toBe(false);
});

it.each(['overlay', 'base'])('facts do not hold when the %s was replaced by its copy', async (which) => {
  const { facts } = await first();
  const file = which === 'overlay' ? overlay : base;
  fs.cpSync(file, `${file}.copy`, { preserveTimestamps: true });
  expect(overlayTracker.stillHolds(facts)).toBe(true);
  fs.renameSync(`${file}.copy`, file);
  expect(overlayTracker.stillHolds(facts)).toBe(false);
});
