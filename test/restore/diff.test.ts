import * as fs from 'node:fs';
import * as path from 'node:path';
import { DOMParser, onErrorStopParsing } from '@xmldom/xmldom';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import type { ManifestDisk } from '../../src/chunks/manifest.js';
import { diffCommand, runDiff } from '../../src/commands/diff.js';
import { differingRanges } from '../../src/restore/compare.js';
import type { TreeDiff } from '../../src/restore/diff.js';
import { diskMap, shade, textMap } from '../../src/restore/disk-map.js';
import { isSampled } from '../../src/restore/sample.js';
import { MAX_SVG_CELLS, svgMap } from '../../src/restore/svg-map.js';
import { writeTree } from '../support/trees.js';
import { errorOf, RecordingContext, temporaryDirectory } from './built.js';
import { CHUNK, CHUNKS, DEMO_SIZE, demoContent, demoTree } from './demo-tree.js';

function pair(chunks: readonly number[]): { before: string; after: string } {
  const content = demoContent();
  for (const chunk of chunks) content[chunk * CHUNK]! ^= 1;
  return { before: demoTree().root, after: demoTree(content).root };
}

async function diff(options: { before: string; after: string; disks?: string[] }): Promise<TreeDiff> {
  const context = new RecordingContext(true);
  await runDiff({ all: false, ...options }, context);
  return JSON.parse(context.text) as TreeDiff;
}

describe('diff', () => {
  it('finds nothing in equal trees', async () => {
    const { disks } = await diff(pair([]));
    expect(disks).toMatchObject([
      { disk: 'vda', state: 'compared', chunks: CHUNKS, changedChunks: 0, changedBytes: 0, ranges: [] },
    ]);
  });

  it('gives ranges, bytes and counts', async () => {
    const [disk] = (await diff(pair([0, 3, 4, 5, 255, 256, CHUNKS - 1]))).disks;
    expect(disk).toMatchObject({
      oldSize: DEMO_SIZE,
      newSize: DEMO_SIZE,
      changedChunks: 7,
      changedBytes: 6 * CHUNK + 1234,
    });
    expect(disk!.ranges).toEqual([
      { first: 0, count: 1, offset: 0, bytes: CHUNK },
      { first: 3, count: 3, offset: 3 * CHUNK, bytes: 3 * CHUNK },
      { first: 255, count: 2, offset: 255 * CHUNK, bytes: 2 * CHUNK },
      { first: CHUNKS - 1, count: 1, offset: (CHUNKS - 1) * CHUNK, bytes: 1234 },
    ]);
  });

  it.each([0, 15])('compares digit %i of the hashes', async (digit) => {
    const trees = pair([]);
    const file = path.join(trees.after, 'vda.xxh64');
    const sums = fs.readFileSync(file, 'latin1');
    fs.writeFileSync(file, sums.slice(0, digit) + (sums[digit] === '0' ? '1' : '0') + sums.slice(digit + 1));
    expect((await diff(trees)).disks[0]!.changedChunks).toBe(1);
  });

  it('takes a chunk whose hash is lost in either for a changed one', () => {
    const disk = { target: 'vda', chunkSize: CHUNK, chunkCount: 3 } as ManifestDisk;
    const side = (lost?: Uint8Array) => ({ disk, sums: { hashes: new Uint32Array(6), lost } });
    const [intact, damaged] = [side(), side(Uint8Array.of(0, 1, 0))];
    expect(differingRanges(intact, intact)).toEqual([]);
    expect(differingRanges(intact, damaged)).toEqual([{ first: 1, count: 1 }]);
    expect(differingRanges(damaged, intact)).toEqual([{ first: 1, count: 1 }]);
  });

  it('reads no chunk', async () => {
    const trees = pair([5]);
    for (const tree of Object.values(trees)) fs.rmSync(path.join(tree, 'vda'), { recursive: true });
    expect((await diff(trees)).disks[0]!.changedChunks).toBe(1);
  });

  it('knows disks that came, went and grew', async () => {
    const directory = temporaryDirectory();
    const [before, after] = [path.join(directory, 'before'), path.join(directory, 'after')];
    const content = Buffer.alloc(10 * 4096, 1);
    const disk = (target: string, chunks: number) => ({
      target,
      content: content.subarray(0, chunks * 4096),
      chunkSize: 4096,
    });
    writeTree(before, { disks: [disk('vda', 3), disk('vdb', 2)] });
    writeTree(after, { disks: [disk('vda', 5), disk('vdc', 1)] });
    const { disks } = await diff({ before, after });
    expect(disks).toMatchObject([
      { disk: 'vda', state: 'compared', changedChunks: 2, ranges: [{ first: 3, count: 2 }] },
      { disk: 'vdb', state: 'removed', oldSize: 8192, newSize: 0, changedChunks: 2 },
      { disk: 'vdc', state: 'added', oldSize: 0, newSize: 4096, changedChunks: 1 },
    ]);
    expect((await diff({ before, after, disks: ['vdc'] })).disks).toHaveLength(1);
    await errorOf(diff({ before, after, disks: ['vdx'] }), 'usage');
  });

  it('refuses other chunk sizes and damaged sums', async () => {
    const { before, after } = pair([]);
    const larger = demoTree(demoContent(), 2 * CHUNK).root;
    await errorOf(diff({ before, after: larger }), 'usage');
    fs.truncateSync(path.join(after, 'vda.xxh64'), 100);
    await errorOf(diff({ before, after }), 'integrity');
  });

  it('says it in words, with a map when told to', async () => {
    const context = new RecordingContext();
    await runDiff({ ...pair([0, 350]), all: false, map: true }, context);
    expect(context.text.split('\n')).toEqual([
      'mail01: 2024-05-31T22:15:00Z to 2024-05-31T22:15:00Z',
      'vda: 2 of 700 chunks changed, 8.0 KiB of 2.7 MiB',
      `  █${'·'.repeat(63)}`,
      ...Array.from({ length: 4 }, () => `  ${'·'.repeat(64)}`),
      `  ${'·'.repeat(30)}█${'·'.repeat(33)}`,
      ...Array.from({ length: 4 }, () => `  ${'·'.repeat(64)}`),
      `  ${'·'.repeat(60)}`,
      '  each character stands for 1 chunk, 4.0 KiB',
      '  00000000  1 chunk, 4.0 KiB at 0 B',
      '  0000015e  1 chunk, 4.0 KiB at 1.4 MiB',
      '',
    ]);
  });

  it('lists 20 ranges, or all of them', async () => {
    const trees = pair(Array.from({ length: 30 }, (_, i) => i * 2));
    const lines = async (all: boolean) => {
      const context = new RecordingContext();
      await runDiff({ ...trees, all }, context);
      return context.text.split('\n').slice(2, -1);
    };
    expect(await lines(true)).toHaveLength(30);
    expect((await lines(false)).slice(20)).toEqual(['  and 10 ranges more: --all lists them']);
  });

  it('takes --map, --no-map and neither from the command line', async () => {
    const { before, after } = pair([0]);
    for (const [flags, expected] of [
      [[], false],
      [['--map'], true],
      [['--no-map'], false],
    ] as const) {
      const context = new RecordingContext();
      await diffCommand(() => context).parseAsync([before, after, ...flags], { from: 'user' });
      expect(context.text.includes('█')).toBe(expected);
    }
  });

  it('draws a picture', async () => {
    const svg = path.join(temporaryDirectory(), 'changes.svg');
    await runDiff({ ...pair([0, 1, 350]), all: false, svg }, new RecordingContext());
    const document = new DOMParser({ onError: onErrorStopParsing }).parseFromString(
      fs.readFileSync(svg, 'utf8'),
      'image/svg+xml',
    );
    const titles = Array.from(document.getElementsByTagName('title'), (title) => title.textContent);
    expect(titles).toEqual(['0 B to 8.0 KiB', '1.4 MiB to 1.4 MiB']);
    const failing = runDiff(
      { ...pair([]), all: false, svg: '/no/such/directory/x.svg' },
      new RecordingContext(),
    );
    await errorOf(failing, 'failed');
  });
});

/** Ascending ranges that do not touch, of a disk of `chunks` chunks. */
const disk = fc.integer({ min: 1, max: 5000 }).chain((chunks) =>
  fc.record({
    chunks: fc.constant(chunks),
    changed: fc.uniqueArray(fc.nat({ max: chunks - 1 }), { maxLength: 50 }),
    maxCells: fc.integer({ min: 1, max: 300 }),
  }),
);

describe('diskMap', () => {
  it('has at most that many cells, and shows every change', () => {
    fc.assert(
      fc.property(disk, ({ chunks, changed, maxCells }) => {
        const { cells, chunksPerCell } = diskMap(
          chunks,
          changed.map((first) => ({ first, count: 1 })),
          maxCells,
        );
        expect(cells.length).toBeLessThanOrEqual(maxCells);
        expect(cells.length).toBe(Math.ceil(chunks / chunksPerCell));
        const expected = cells.map((_, cell) => {
          const size = Math.min(chunksPerCell, chunks - cell * chunksPerCell);
          return changed.filter((chunk) => Math.floor(chunk / chunksPerCell) === cell).length / size;
        });
        expect(cells).toEqual(expected);
        for (const share of cells) expect(shade(share) > 0).toBe(share > 0);
      }),
    );
  });

  it('spreads a range over cells', () => {
    const map = diskMap(16, [{ first: 3, count: 6 }], 4);
    expect([...map.cells]).toEqual([0.25, 1, 0.25, 0]);
    expect(textMap(map, 3)).toEqual(['░█░', '·']);
    expect(textMap(diskMap(0, [], 4), 3)).toEqual([]);
  });
});

describe('svgMap', () => {
  it('stays small and legible for four million chunks', () => {
    const chunks = 4 * 1024 * 1024;
    // Every second cell: the worst there can be.
    const ranges = Array.from({ length: chunks / 1024 }, (_, i) => ({ first: i * 1024, count: 200 }));
    const map = diskMap(chunks, ranges, MAX_SVG_CELLS);
    expect(map.cells.length).toBeGreaterThan(MAX_SVG_CELLS / 2);
    const text = svgMap('a & b', [{ title: '<vda>', scale: '', map, describe: () => 'x' }]);
    expect(text.length).toBeLessThan(1024 * 1024);
    const document = new DOMParser({ onError: onErrorStopParsing }).parseFromString(text, 'image/svg+xml');
    expect(Number(document.documentElement!.getAttribute('height'))).toBeLessThan(1000);
  });
});

describe('isSampled', () => {
  it('takes the share that it is told, give or take one, wherever it starts', () => {
    fc.assert(
      fc.property(
        fc.double({ min: 0.001, max: 1, noNaN: true }),
        fc.double({ min: 0, max: 0.999, noNaN: true }),
        fc.integer({ min: 0, max: 3000 }),
        (share, start, count) => {
          let taken = 0;
          for (let i = 0; i < count; i++) if (isSampled({ share, start }, i)) taken++;
          expect(Math.abs(taken - count * share)).toBeLessThanOrEqual(1 + 1e-6);
        },
      ),
    );
  });

  it('reaches every chunk from some start', () => {
    const starts = Array.from({ length: 20 }, (_, i) => i / 20);
    for (let chunk = 0; chunk < 100; chunk++) {
      expect(starts.some((start) => isSampled({ share: 0.05, start }, chunk))).toBe(true);
    }
  });
});
