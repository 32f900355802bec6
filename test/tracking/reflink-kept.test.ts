import * as fs from 'node:fs';
import * as path from 'node:path';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { silentReporter } from '../../src/report/reporter.js';
import { reflinkTracker } from '../../src/tracking/reflink.js';
import type { TrackedDisk } from '../../src/tracking/tracker.js';
import { isOpen } from '../support/descriptors.js';
import { TestFileSystem } from '../support/file-systems.js';
import { noise } from '../support/images.js';
import { CLUSTER, Image, known, overwrite, SIZE, timesKept, unknown } from './reflink-image.js';

let fileSystem: TestFileSystem;
let directory: string;
let base: string;

beforeAll(async () => {
  fileSystem = await TestFileSystem.make('xfs');
});
afterAll(() => fileSystem?.close());
beforeEach(() => {
  directory = fs.mkdtempSync(path.join(fileSystem.directory, 'd-'));
  base = path.join(directory, 'base.raw');
  fs.writeFileSync(base, noise(SIZE, 2));
});
afterEach(() => fs.rmSync(directory, { recursive: true }));

async function image(format: 'raw' | 'qcow2'): Promise<Image> {
  const made = await new Image(directory, format).make();
  await made.session();
  return made;
}

it('what was written is told although the file system has another number since the host was started', async () => {
  const one = await image('raw');
  (one.before!.file as { device: string }).device = '1';
  expect(await one.session()).toEqual(known());
});

it('comparing leaves no file open, and ends with an error when it is aborted', async () => {
  const one = await image('raw');
  const { kept, before } = one;
  expect(await one.session()).toEqual(known());
  expect([isOpen(kept), isOpen(one.kept)]).toEqual([false, false]);
  const disk = await one.disk(one.kept, undefined);
  const comparing = { disk, reporter: silentReporter, signal: AbortSignal.abort(new Error('enough')) };
  await expect(reflinkTracker.changesSince(before!, one.before!, comparing)).rejects.toThrow('enough');
});

describe('while it is compared', () => {
  const real = process.env.PATH;
  afterEach(() => {
    process.env.PATH = real;
  });

  /** Does `script` before the blocks of a file are told for the nth time. */
  function meanwhile(number: number, script: string): void {
    const bin = path.join(directory, 'bin');
    fs.mkdirSync(bin);
    const text = `#!/bin/sh
PATH='${real}'
echo >>'${bin}/count'
if [ "$(wc -l <'${bin}/count')" = ${number} ]; then
${script}
fi
exec filefrag "$@"
`;
    fs.writeFileSync(path.join(bin, 'filefrag'), text, { mode: 0o755 });
    process.env.PATH = `${bin}:${real}`;
  }

  it('blocks that were moved are found the second time', async () => {
    const one = await image('raw');
    await one.write(5 * CLUSTER, 4096);
    // As if the kept clone had had the blocks of the new one at first.
    meanwhile(1, `exec filefrag "$@" 3<'${one.path}'`);
    expect(await one.session()).toEqual(known([5 * CLUSTER, 5 * CLUSTER + 4096]));
  });

  it('a kept clone that is written is of no use', async () => {
    const one = await image('raw');
    meanwhile(3, `printf x | dd of='${one.kept}' conv=notrunc status=none`);
    expect(await one.session()).toEqual(unknown(/the kept clone .* was written/));
  });

  it('a kept clone that is replaced is of no use', async () => {
    const one = await image('raw');
    meanwhile(3, `cp '${one.kept}' '${one.kept}.copy'; mv '${one.kept}.copy' '${one.kept}'`);
    expect(await one.session()).toEqual(unknown(/the kept clone .* is another file/));
  });
});

it('what is known holds no more once a clone or what lies below it was written, or is gone', async () => {
  const one = await image('qcow2');
  const facts = one.before!;
  expect(reflinkTracker.stillHolds(facts)).toBe(true);
  await timesKept(base, () => overwrite(base));
  expect(reflinkTracker.stillHolds(facts)).toBe(false);
  await one.session();
  await timesKept(one.kept, () => overwrite(one.kept));
  expect(reflinkTracker.stillHolds(one.before!)).toBe(false);
  fs.rmSync(one.kept);
  expect(reflinkTracker.stillHolds(one.before!)).toBe(false);
});

it('nothing is said of a disk whose data is not in the clone alone', async () => {
  const one = await image('raw');
  const disk = await one.disk(one.path, undefined);
  const [layer] = disk.layers;
  const observe = (change: Partial<TrackedDisk['layers'][number]>) =>
    reflinkTracker.observe({ ...disk, layers: [{ ...layer!, ...change }] });
  const none = (reason: RegExp) => ({ kind: 'none', reason: expect.stringMatching(reason) });
  expect(await observe({ dataFile: { ...layer!, path: base } })).toEqual(none(/its data is in another/));
  expect(await observe({ device: true })).toEqual(none(/is a block device/));
  expect(await observe({ format: 'vmdk' })).toEqual(none(/its format is vmdk/));
});
