import * as fs from 'node:fs';
import * as path from 'node:path';
import fc from 'fast-check';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { run } from '../../src/host/exec.js';
import type { ExtentMap } from '../../src/image/extent-map.js';
import { readFileExtents } from '../../src/image/file-extents.js';
import type { ByteRange } from '../../src/image/own-ranges.js';
import type { ImageSource } from '../../src/image/sources.js';
import { differentRanges, type MappedDisk, union } from '../../src/tracking/shared-blocks.js';
import { extents, mapOf } from '../image/extents.js';
import { TestFileSystem } from '../support/file-systems.js';
import { noise } from '../support/images.js';
import { program, requireAll } from '../support/requirements.js';

function covers(ranges: readonly ByteRange[], position: number): boolean {
  return ranges.some(({ start, end }) => start <= position && position < end);
}

function expectInOrder(ranges: readonly ByteRange[]): void {
  ranges.forEach(({ start, end }, index) => {
    expect(end).toBeGreaterThan(start);
    expect(start).toBeGreaterThan(ranges[index - 1]?.end ?? -1);
  });
}

describe('maps of any form', () => {
  /** Where each byte of a disk comes from, in words: alike means that it is the same; undefined that nobody knows. */
  function places({ extents: map, sources, blocks, file }: MappedDisk): (string | undefined)[] {
    const place = (of: ExtentMap, position: number): [source: number, offset: number] => {
      const extent = of.find(position);
      return [of.sourceOf(extent), of.offsetOf(extent) + position - of.startOf(extent)];
    };
    return Array.from({ length: map.size }, (_, position) => {
      const [number, offset] = place(map, position);
      const source = sources[number];
      if (number === 255) return 'zeros';
      if (source?.kind !== 'file') return undefined;
      if (source.path !== file) return `${source.path} ${offset}`;
      const [kind, address] = place(blocks, offset);
      if (kind === 255) return 'own zeros';
      return kind === 0 ? `block ${address}` : undefined;
    });
  }

  const FILE_SIZE = 30;

  /** A file whose blocks are those, with something for what is not told. */
  function fileOf(list: Parameters<typeof mapOf>[0]): ExtentMap {
    return mapOf([...list, { length: 1000, source: 255, offset: 0 }]);
  }

  function disk(
    file: string,
    list: Parameters<typeof mapOf>[0],
    size: number,
    blocks: ExtentMap,
    below = 'below',
  ): MappedDisk {
    const cut = mapOf([...list, { length: size, source: 255, offset: 0 }]);
    const pieces = [];
    for (let extent = 0; extent < cut.count; extent++) {
      const start = cut.startOf(extent);
      const length = Math.min(cut.endOf(extent), size) - start;
      if (length > 0) pieces.push({ length, source: cut.sourceOf(extent), offset: cut.offsetOf(extent) });
    }
    const sources: ImageSource[] = Array.from({ length: 255 }, () => ({ kind: 'view' }));
    sources[0] = { kind: 'file', path: file, size: FILE_SIZE };
    sources[1] = { kind: 'file', path: below, size: FILE_SIZE };
    return { file, extents: mapOf(pieces), sources, blocks };
  }

  it('differ exactly where no place is the same', () => {
    const below = fc.constantFrom('below', 'another');
    const maps = fc.tuple(extents, extents, extents, extents);
    fc.assert(
      fc.property(maps, fc.nat(60), below, ([a, b, oldBlocks, newBlocks], size, lower) => {
        const before = disk('old', a, size, fileOf(oldBlocks));
        const now = disk('new', b, size, fileOf(newBlocks), lower);
        const ranges = differentRanges(before, now);
        expectInOrder(ranges);
        const then = places(before);
        const differ = places(now).map((place, position) => place === undefined || place !== then[position]);
        expect(differ).toEqual(then.map((_, position) => covers(ranges, position)));
      }),
      { numRuns: 300 },
    );
  });
});

it('lists of ranges are joined', () => {
  const range = fc.record({ start: fc.nat(40), length: fc.nat(5) });
  const list = fc.array(range).map((all) => all.map(({ start, length }) => ({ start, end: start + length })));
  fc.assert(
    fc.property(list, list, (a, b) => {
      const all = union(a, b);
      expectInOrder(all);
      for (let position = 0; position < 50; position++)
        expect(covers(all, position)).toBe(covers(a, position) || covers(b, position));
    }),
  );
});

const BLOCK = 4096;
const SIZE = 64 * BLOCK - 1000;

/** Each piece of it is another one, and shorter when compressed. */
function compressible(length: number): Buffer {
  const lines = Array.from({ length: length / 64 }, (_, number) => `${number}`.padEnd(64));
  return Buffer.from(lines.join('').padEnd(length));
}

const place = fc.record({ offset: fc.nat(SIZE - 1), length: fc.integer({ min: 1, max: 6 * BLOCK }) });
const change = fc.oneof(
  { weight: 4, arbitrary: place.map((at) => ({ kind: 'write' as const, ...at })) },
  place.map((at) => ({ kind: 'zeros' as const, ...at })),
  place.map((at) => ({ kind: 'hole' as const, ...at })),
  place.map((at) => ({ kind: 'allocate' as const, ...at })),
  fc.record({ kind: fc.constant('move' as const) }),
  fc.record({ kind: fc.constant('clone' as const) }),
  // The same blocks at another place, as a deduplication makes them; or a compressed piece without its beginning.
  {
    weight: 4,
    arbitrary: fc.record({ kind: fc.constant('share' as const), from: fc.nat(50), to: fc.nat(50) }),
  },
);
type Change = typeof change extends fc.Arbitrary<infer T> ? T : never;

describe.each([
  ['xfs', 'xfs', []],
  ['btrfs', 'btrfs', []],
  ['btrfs, compressing', 'btrfs', ['+c']],
  ['btrfs, without copy-on-write', 'btrfs', ['+C']],
] as const)('files on %s', (_, kind, attributes) => {
  let fileSystem: TestFileSystem;
  let count = 0;
  let writes = 0;

  beforeAll(async () => {
    await requireAll(program('xfs_io', 'xfsprogs'), program('fallocate', 'util-linux'));
    fileSystem = await TestFileSystem.make(kind);
  });
  afterAll(() => fileSystem?.close());

  async function apply(image: string, given: Change): Promise<void> {
    if (given.kind === 'clone')
      return void (await run('cp', ['--reflink=always', image, `${image}.${++writes}`]));
    if (given.kind === 'share') {
      // Both must not overlap.
      const length = Math.min(12, Math.abs(given.from - given.to)) * BLOCK;
      const command = `reflink ${image} ${given.from * BLOCK} ${given.to * BLOCK} ${length}`;
      if (length > 0) await run('xfs_io', ['-c', command, image]);
      return;
    }
    if (given.kind === 'move') {
      // What a defragmentation does: the same content in other blocks.
      const fd = fs.openSync(image, 'r+');
      const part = Buffer.alloc(8 * BLOCK);
      fs.readSync(fd, part, 0, part.length, 16 * BLOCK);
      fs.writeSync(fd, part, 0, part.length, 16 * BLOCK);
      return fs.closeSync(fd);
    }
    const length = Math.min(given.length, SIZE - given.offset);
    if (given.kind === 'hole' || given.kind === 'allocate') {
      const how = given.kind === 'hole' ? '--punch-hole' : '--zero-range';
      await run('fallocate', [how, '--keep-size', `--offset=${given.offset}`, `--length=${length}`, image]);
      return;
    }
    const fd = fs.openSync(image, 'r+');
    fs.writeSync(
      fd,
      given.kind === 'zeros' ? Buffer.alloc(length) : noise(length, ++writes),
      0,
      length,
      given.offset,
    );
    fs.closeSync(fd);
  }

  async function mapped(file: string): Promise<MappedDisk> {
    const fd = fs.openSync(file, 'r');
    const blocks = await readFileExtents(fd);
    fs.closeSync(fd);
    const whole = mapOf([{ length: blocks.size, source: 0, offset: 0 }]);
    return { file, extents: whole, sources: [{ kind: 'file', path: file, size: SIZE }], blocks };
  }

  it('are the same wherever two clones share blocks', async () => {
    await fc.assert(
      fc.asyncProperty(fc.array(change, { maxLength: 8 }), async (changes) => {
        const directory = path.join(fileSystem.directory, `${++count}`);
        fs.mkdirSync(directory);
        for (const attribute of attributes) await run('chattr', [attribute, directory]);
        const image = path.join(directory, 'image');
        // Btrfs gives up compressing a file in which something does not get shorter.
        const content = attributes.some((one) => one === '+c') ? compressible(SIZE) : noise(SIZE, count);
        fs.writeFileSync(image, content);
        const [old, now] = [path.join(directory, 'old'), path.join(directory, 'now')];
        await run('cp', ['--reflink=always', image, old]);
        for (const one of changes) await apply(image, one);
        await run('cp', ['--reflink=always', image, now]);
        const ranges = differentRanges(await mapped(old), await mapped(now));
        expectInOrder(ranges);
        const [before, after] = [fs.readFileSync(old), fs.readFileSync(now)];
        const missed = before.findIndex(
          (byte, position) => byte !== after[position] && !covers(ranges, position),
        );
        expect(missed).toBe(-1);
        // And it is not that everything counts as changed.
        if (changes.every(({ kind: what }) => what === 'clone') && !attributes.some((one) => one === '+c'))
          expect(ranges).toEqual([]);
        fs.rmSync(directory, { recursive: true });
      }),
      { numRuns: Number(process.env.TRACKING_RUNS ?? 12), endOnFailure: true },
    );
  }, 60_000);

  it('that are too small for blocks of their own count as changed', async () => {
    const [old, now] = ['small', 'small too'].map((name) => path.join(fileSystem.directory, name)) as [
      string,
      string,
    ];
    fs.writeFileSync(old, 'small');
    await run('cp', ['--reflink=always', old, now]);
    const ranges = differentRanges(await mapped(old), await mapped(now));
    expect(ranges).toEqual(kind === 'xfs' ? [] : [{ start: 0, end: 5 }]);
  });
});
