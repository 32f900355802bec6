import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { ChunkmountError } from '../../src/errors.js';
import { ZERO_SOURCE } from '../../src/image/extent-map.js';
import type { ImageChain, ImageLayer } from '../../src/image/image-layer.js';
import { LayeredMap } from '../../src/image/layered-map.js';
import type { MapLine } from '../../src/image/map-line.js';

const DISK = 4096;

function layer(path: string, format: string, more: Partial<ImageLayer> = {}): ImageLayer {
  return { path, format, device: false, fileSize: 1 << 20, virtualSize: DISK, ...more };
}

const CHAIN: ImageChain = [
  layer('/top', 'qcow2'),
  layer('/middle', 'qcow2', { dataFile: { path: '/middle.data', device: false, fileSize: 1 << 20 } }),
  layer('/other', 'vmdk'),
  layer('/base', 'raw', { virtualSize: undefined }),
];

/** The fields of a line that decide; it covers the whole disk. */
type Rule = Pick<MapLine, 'depth' | 'zero' | 'data' | 'offset'>;

function mapped(rule: Rule) {
  const map = new LayeredMap(CHAIN);
  map.add({ start: 0, length: DISK, ...rule });
  const { extents, sources } = map.finish();
  return {
    source: extents.sourceOf(0) === ZERO_SOURCE ? 'zero' : sources[extents.sourceOf(0)],
    offset: extents.offsetOf(0),
  };
}

const file = (path: string) => ({ kind: 'file', path, size: 1 << 20 });

describe('ordered rule from a map line to a source', () => {
  it.each<[string, Rule, unknown, number]>([
    ['zero', { depth: 0, zero: true, data: false }, 'zero', 0],
    [
      'preallocated: zero wins over data and offset',
      { depth: 0, zero: true, data: true, offset: 512 },
      'zero',
      0,
    ],
    [
      'extended L2: not data wins over the offset',
      { depth: 0, zero: false, data: false, offset: 512 },
      'zero',
      0,
    ],
    ['not there at all, below the chain', { depth: 4, zero: false, data: false }, 'zero', 0],
    ['qcow2', { depth: 0, zero: false, data: true, offset: 512 }, file('/top'), 512],
    ['qcow2 with a data file', { depth: 1, zero: false, data: true, offset: 512 }, file('/middle.data'), 512],
    ['raw', { depth: 3, zero: false, data: true, offset: 0 }, file('/base'), 0],
    ['compressed', { depth: 0, zero: false, data: true }, { kind: 'view' }, 0],
    [
      'another format, whatever its offset says',
      { depth: 2, zero: false, data: true, offset: 512 },
      { kind: 'view' },
      0,
    ],
  ])('%s', (_, rule, source, offset) => {
    expect(mapped(rule)).toEqual({ source, offset });
  });

  it('a view is read where the disk is, whatever came before', () => {
    const map = new LayeredMap(CHAIN);
    map.add({ start: 0, length: 1024, depth: 0, zero: false, data: true, offset: 8192 });
    map.add({ start: 1024, length: 1024, depth: 0, zero: false, data: true });
    map.add({ start: 2048, length: 2048, depth: 2, zero: false, data: true, offset: 0 });
    const { extents, sources } = map.finish();
    expect(sources).toEqual([file('/top'), { kind: 'view' }]);
    expect(extents.count).toBe(2);
    expect([extents.sourceOf(1), extents.offsetOf(1)]).toEqual([1, 1024]);
  });
});

it('data of a block device, whose size no file tells, lies in it', () => {
  const map = new LayeredMap([layer('/dev/x', 'qcow2', { device: true, fileSize: 0 })]);
  map.add({ start: 0, length: DISK, depth: 0, zero: false, data: true, offset: 65536 });
  expect(map.finish().sources).toEqual([{ kind: 'file', path: '/dev/x', size: 0 }]);
});

describe('lines that do not add up are refused', () => {
  const zeros = (start: number, length: number): MapLine => ({
    start,
    length,
    depth: 0,
    zero: true,
    data: false,
  });

  it.each([
    ['a gap', [zeros(0, 512), zeros(1024, 3072)]],
    ['an overlap', [zeros(0, 1024), zeros(512, 3584)]],
    ['the wrong order', [zeros(512, 3584), zeros(0, 512)]],
    ['too short', [zeros(0, 3584)]],
    ['too long', [zeros(0, 4608)]],
    ['nothing', []],
    ['more than 2^53', [zeros(0, 512), zeros(512, Number.MAX_SAFE_INTEGER)]],
    [
      'data in a layer that is not there',
      [{ start: 0, length: DISK, depth: 4, zero: false, data: true, offset: 0 }],
    ],
    [
      'data beyond the end of the file',
      [{ start: 0, length: DISK, depth: 0, zero: false, data: true, offset: 1 << 20 }],
    ],
  ])('%s', (_, lines) => {
    const feed = () => {
      const map = new LayeredMap(CHAIN);
      for (const line of lines) map.add(line);
      map.finish();
    };
    expect(feed).toThrow(ChunkmountError);
    expect(feed).toThrow('/top');
  });

  /** The disk cut at each of these places (sectors). */
  const cuts = fc.uniqueArray(fc.integer({ min: 1, max: DISK / 512 - 1 }));

  function size(lines: readonly MapLine[]): number {
    const map = new LayeredMap(CHAIN);
    for (const line of lines) map.add(line);
    return map.finish().extents.size;
  }

  it('a disk cut anywhere is accepted, and refused as soon as any one extent begins or ends elsewhere', () => {
    const change = fc.record({
      at: fc.nat(),
      key: fc.constantFrom('start', 'length'),
      by: fc.constantFrom(-512, 512),
    });
    fc.assert(
      fc.property(cuts, change, (places, { at, key, by }) => {
        const ends = [...places.toSorted((a, b) => a - b).map((place) => place * 512), DISK];
        const lines = ends.map((end, i) => zeros(ends[i - 1] ?? 0, end - (ends[i - 1] ?? 0)));
        expect(size(lines)).toBe(DISK);
        const wrong = lines.map((line, i) =>
          i === at % lines.length ? { ...line, [key]: line[key as 'start'] + by } : line,
        );
        expect(() => size(wrong)).toThrow();
      }),
    );
  });

  it('a raw file has to be as long as its map, up to its last sector', () => {
    const raw = (fileSize: number): ImageChain => [
      layer('/disk.raw', 'raw', { fileSize, virtualSize: undefined }),
    ];
    const feed = (fileSize: number, length: number) => {
      const map = new LayeredMap(raw(fileSize));
      map.add({ start: 0, length, depth: 0, zero: false, data: true, offset: 0 });
      return map.finish().sources;
    };
    expect(feed(513, 1024)).toEqual([{ kind: 'file', path: '/disk.raw', size: 513 }]);
    expect(() => feed(512, 1024)).toThrow('/disk.raw');
    expect(() => feed(1025, 1024)).toThrow('/disk.raw');
  });
});
