import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { directoryCount, geometry } from '../../src/chunks/geometry.js';
import {
  chunkName,
  chunkPath,
  directoryNames,
  directoryPath,
  LAYOUT_KINDS,
  layoutOf,
  subdirectories,
} from '../../src/chunks/layout.js';

const index = fc.integer({ min: 0, max: 2 ** 32 - 1 });
const layouts = LAYOUT_KINDS.map(layoutOf);

/** Goes down a path name by name, as lookups do. Answers the chunk's index, or -1 where a name leads nowhere. */
function resolve(layout: ReturnType<typeof layoutOf>, path: string): number {
  const names = path.split('/');
  if (names.length !== layout.levels + 1) return -1;
  let number = 0;
  for (let rank = layout.levels - 1; rank >= 0; rank--) {
    number = layout.parseDirectoryName(rank, number, names[layout.levels - 1 - rank]!);
    if (number < 0) return -1;
  }
  return layout.parseChunkName(number, names.at(-1)!);
}

describe('chunkPath', () => {
  it.each([
    [0, '000000/00000000', '00/00/00/00/00/00/00/00'],
    [1, '000000/00000001', '00/00/00/00/00/00/00/01'],
    [255, '000000/000000ff', '00/00/00/00/00/00/00/ff'],
    [256, '000001/00000100', '00/00/00/00/00/00/01/00'],
    [0x1a2f3, '0001a2/0001a2f3', '00/00/00/00/00/01/a2/f3'],
    [2 ** 31, '800000/80000000', '00/00/00/00/80/00/00/00'],
    [2 ** 32 - 1, 'ffffff/ffffffff', '00/00/00/00/ff/ff/ff/ff'],
  ])('puts chunk %i at %s, and chunkfs at %s', (chunk, own, chunkfs) => {
    expect(chunkPath(layoutOf('chunkmount'), chunk)).toBe(own);
    expect(chunkPath(layoutOf('chunkfs'), chunk)).toBe(chunkfs);
  });
});

describe.each(layouts)('the layout of $kind', (layout) => {
  it('is read back as what it was made from', () => {
    fc.assert(
      fc.property(index, (chunk) => {
        const path = chunkPath(layout, chunk);
        expect(path).toHaveLength(layout.pathLength);
        expect(resolve(layout, path)).toBe(chunk);
        expect(path.endsWith(chunkName(layout, chunk))).toBe(true);
      }),
    );
  });

  it('sorts as the chunks do', () => {
    fc.assert(
      fc.property(index, index, (a, b) => {
        const [left, right] = [chunkPath(layout, a), chunkPath(layout, b)];
        expect(Math.sign(a - b)).toBe(left < right ? -1 : left > right ? 1 : 0);
      }),
    );
  });

  it('has one spelling of each path only', () => {
    const name = fc.string({ maxLength: 8, unit: fc.constantFrom(...'09afAFg.x ') });
    fc.assert(
      fc.property(fc.array(name, { minLength: 1, maxLength: 8 }), (names) => {
        const path = names.join('/');
        const chunk = resolve(layout, path);
        if (chunk >= 0) expect(chunkPath(layout, chunk)).toBe(path);
      }),
      { numRuns: 2000 },
    );
  });

  it.each(['', '0', '0000000', '000000000', '0000000G', '0000000A', '0x', '-1', '0A', '00\n', '..'])(
    'does not know the name %j',
    (name) => {
      expect(layout.parseChunkName(0, name)).toBe(-1);
      expect(layout.parseDirectoryName(0, 0, name)).toBe(-1);
    },
  );

  it('finds no chunk by its path in another directory', () => {
    const moved = `${directoryPath(layout, 0x1a1)}/${chunkName(layout, 0x1a2f3)}`;
    expect(resolve(layout, moved)).not.toBe(0x1a2f3);
  });

  it('leads to every directory of a disk, once', () => {
    for (const chunks of [0, 1, 256, 257, 65536, 65537, 300_000]) {
      const disk = geometry(chunks * 4096, 4096);
      const found: string[] = [];
      const walk = (rank: number, number: number, path: readonly string[]) => {
        if (rank === 0) {
          found.push(path.join('/'));
          return;
        }
        const { first, end } = subdirectories(layout, disk, rank, number);
        for (let child = first; child < end; child++)
          walk(rank - 1, child, [...path, layout.directoryName(rank - 1, child)]);
      };
      walk(layout.levels, 0, []);
      const expected = Array.from({ length: directoryCount(disk) }, (_, i) =>
        directoryNames(layout, i).join('/'),
      );
      expect(found).toEqual(expected);
    }
  });
});
