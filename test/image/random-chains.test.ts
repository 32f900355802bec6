import * as fs from 'node:fs';
import * as path from 'node:path';
import fc from 'fast-check';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import type { ImageReference } from '../../src/image/image-reference.js';
import { diskContent, overlay, qemuIo, temporaryDirectory, writeRaw } from '../support/images.js';
import { program, requireAll } from '../support/requirements.js';
import { readImage } from './open-image.js';

const BASE_SIZE = 1_000_001;
const UNIT = 64 * 1024;

/** What a guest does to one layer, as commands for qemu-io. All of it is below 1 MiB, the smallest layer's size. */
const commands: fc.Arbitrary<string[]> = fc
  .tuple(
    // Before the others: QEMU compresses into clusters that are not there yet.
    fc.uniqueArray(fc.nat(15), { maxLength: 4 }),
    fc.array(
      fc.tuple(
        fc.constantFrom('write -P 7', 'write -P 9', 'write -z', 'write -z -u', 'discard'),
        fc.nat(2047),
        fc.integer({ min: 1, max: 600 }),
      ),
      { maxLength: 6 },
    ),
  )
  .map(([compressed, writes]) => [
    ...compressed.map((unit) => `write -c -P 8 ${unit * UNIT} ${UNIT}`),
    ...writes.map(([verb, at, sectors]) => `${verb} ${at * 512} ${Math.min(sectors, 2048 - at) * 512}`),
  ]);

const layer = fc.record({
  options: fc.constantFrom('cluster_size=4k', 'cluster_size=64k', 'extended_l2=on', 'compat=0.10'),
  mebibytes: fc.integer({ min: 1, max: 3 }),
  commands,
});

describe('chains of any make', () => {
  let directory: string;
  beforeAll(async () => {
    await requireAll(program('qemu-img', 'qemu-utils'), program('qemu-io', 'qemu-utils'));
    directory = temporaryDirectory();
  });
  afterAll(() => fs.rmSync(directory, { recursive: true }));

  it('read as QEMU reads them, whatever was written to them', async () => {
    await fc.assert(
      fc.asyncProperty(fc.array(layer, { minLength: 1, maxLength: 3 }), async (layers) => {
        const own = fs.mkdtempSync(path.join(directory, 'chain-'));
        let image: ImageReference = writeRaw(path.join(own, 'base.raw'), BASE_SIZE);
        for (const [i, { options, mebibytes, commands }] of layers.entries()) {
          image = await overlay(path.join(own, `${i}.qcow2`), image, mebibytes << 20, ['-o', options]);
          if (commands.length > 0) await qemuIo(image, ...commands);
        }
        expect((await readImage(image)).equals(await diskContent(image))).toBe(true);
        fs.rmSync(own, { recursive: true });
      }),
      { numRuns: 15, interruptAfterTimeLimit: 60_000 },
    );
  });
});
