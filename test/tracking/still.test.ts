import * as fs from 'node:fs';
import * as path from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { run } from '../../src/host/exec.js';
import { inspectImage } from '../../src/image/inspect.js';
import { silentReporter } from '../../src/report/reporter.js';
import { stillTracker } from '../../src/tracking/still.js';
import type { Changes, Comparing, Facts, Observation, TrackedDisk } from '../../src/tracking/tracker.js';
import { mapOf } from '../image/extents.js';
import { asNobody } from '../support/as-nobody.js';
import { type FileSystemKind, TestFileSystem } from '../support/file-systems.js';
import { whileOpenForWriting } from '../support/held-open.js';
import { noise, temporaryDirectory } from '../support/images.js';
import { program, requireAll } from '../support/requirements.js';

const SIZE = 1024 * 1024;
const MOUNTED_ANEW = expect.stringMatching(/^the file system of .* was mounted anew/);

describe.each<[FileSystemKind, string[]]>([
  ['ext4', []],
  ['ext4', ['lazytime']],
  ['xfs', []],
  ['btrfs', []],
])('an image on %s %j', (kind, options) => {
  let system: TestFileSystem;
  let image: string;

  beforeEach(async () => {
    system = await TestFileSystem.make(kind, { mount: options });
    image = path.join(system.directory, 'disk.raw');
    fs.writeFileSync(image, noise(SIZE, 1));
    await run('sync', ['-f', system.directory]);
  });
  afterEach(() => system.close());

  async function look(file = image): Promise<{ facts: Facts; comparing: Comparing }> {
    const found = await inspectImage({ path: file, format: 'raw' }, { reporter: silentReporter });
    // It seems to have been written long ago.
    const disk = { ...found, target: 'vda', since: Date.now() + 5_000, keep: false };
    const observed = await stillTracker.observe(disk);
    if (observed.kind === 'none') throw new Error(observed.reason);
    return { facts: observed.facts, comparing: { disk, reporter: silentReporter } };
  }

  async function changesSince(before: Facts, file?: string): Promise<Changes> {
    const { facts, comparing } = await look(file);
    return stillTracker.changesSince(before, facts, comparing);
  }

  it('did not change as long as its file system is mounted, wherever', async () => {
    const { facts } = await look();
    expect(await changesSince(facts)).toEqual({ kind: 'known', ranges: [] });
    await run('mount', ['-o', 'remount,noatime', system.directory]);
    expect(await changesSince(facts)).toEqual({ kind: 'known', ranges: [] });
    const other = `${system.directory}-other`;
    fs.mkdirSync(other);
    await run('mount', ['--bind', system.directory, other]);
    try {
      expect(await changesSince(facts, path.join(other, 'disk.raw'))).toEqual({ kind: 'known', ranges: [] });
    } finally {
      await run('umount', [other]);
      fs.rmdirSync(other);
    }
  });

  it('may have changed when its file system was mounted anew', async () => {
    const { facts } = await look();
    await system.mountAnew();
    // Btrfs takes any free number for its device: another one if somebody mounted something meanwhile.
    const reason =
      kind === 'btrfs' ? expect.stringMatching(/ was mounted anew|\.raw is another file$/) : MOUNTED_ANEW;
    expect(await changesSince(facts)).toEqual({ kind: 'unknown', reason });
    const { mountings: _, ...older } = facts;
    expect(await changesSince(older)).toEqual({ kind: 'unknown', reason });
  });

  // Btrfs writes nothing in place, and has no such switch.
  if (kind === 'btrfs') return;
  it('has new data with old times when its storage was lost', async () => {
    await requireAll(program('xfs_io', 'xfsprogs'));
    const { facts } = await look();
    const before = fs.statSync(image, { bigint: true });
    await run('qemu-io', ['-f', 'raw', '-n', '-c', 'write -P 90 0 4096', '-c', 'flush', image]);
    await system.mountAnew({ storageLost: true });
    expect(fs.readFileSync(image)[0]).toBe(90);
    expect(fs.statSync(image, { bigint: true }).mtimeNs).toBe(before.mtimeNs);
    expect(await changesSince(facts)).toEqual({ kind: 'unknown', reason: MOUNTED_ANEW });
  });
});

describe('an image', () => {
  let directory: string;
  let disk: TrackedDisk;

  const layer = (file: string) => ({ path: file, format: 'raw', device: false, fileSize: SIZE });
  const file = (name: string) => path.join(directory, name);

  beforeEach(() => {
    directory = temporaryDirectory();
    for (const name of ['disk', 'data']) fs.writeFileSync(file(name), noise(SIZE, 1));
    const extents = mapOf([{ length: SIZE, source: 0, offset: 0 }]);
    disk = { target: 'vda', layers: [layer(file('disk'))], sources: [], extents, since: 0, keep: false };
  });
  afterEach(() => fs.rmSync(directory, { recursive: true }));

  function observe(change: Partial<TrackedDisk> = {}): Promise<Observation> {
    return stillTracker.observe({ ...disk, since: Date.now() + 5_000, ...change });
  }

  it.each<[string, () => Partial<TrackedDisk>]>([
    ['a data file', () => ({ layers: [{ ...disk.layers[0]!, dataFile: layer(file('data')) }] })],
    ['another file', () => ({ sources: [{ kind: 'file', path: file('data'), size: SIZE }] })],
  ])('whose content is in %s may have changed when that was written, or is gone', async (_, change) => {
    const before = await observe(change());
    if (before.kind === 'none') throw new Error(before.reason);
    expect(stillTracker.stillHolds(before.facts)).toBe(true);
    fs.appendFileSync(file('data'), 'more');
    expect(stillTracker.stillHolds(before.facts)).toBe(false);
    const now = await observe(change());
    if (now.kind === 'none') throw new Error(now.reason);
    const reason = `${file('data')} has another size`;
    const comparing = { disk, reporter: silentReporter };
    expect(await stillTracker.changesSince(before.facts, now.facts, comparing)).toEqual({
      kind: 'unknown',
      reason,
    });
    fs.rmSync(file('data'));
    expect(stillTracker.stillHolds(now.facts)).toBe(false);
  });

  it('that QEMU has open for writing, or serves, is not known to stand still', async () => {
    await whileOpenForWriting({ path: file('disk'), format: 'raw' }, async () => {
      expect(await observe()).toEqual({
        kind: 'none',
        reason: `QEMU has ${file('disk')} open for writing`,
      });
    });
    expect(await observe({ layers: [{ ...disk.layers[0]!, nbdExport: 'vda' }] })).toEqual({
      kind: 'none',
      reason: 'a VM has it open for writing',
    });
  });

  it('is not known to stand still where not every process shows what it has open', async (context) => {
    fs.chmodSync(directory, 0o755);
    await asNobody(context, async () => {
      expect(await observe()).toEqual({
        kind: 'none',
        reason: expect.stringContaining('not every process shows'),
      });
    });
  });
});
