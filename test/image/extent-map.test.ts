import { Worker } from 'node:worker_threads';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { ExtentMap, extentMapBytes, ZERO_SOURCE } from '../../src/image/extent-map.js';
import { ExtentMapBuilder } from '../../src/image/extent-map-builder.js';
import { type Extent, extents, mapOf } from './extents.js';

/** What the map has to say of each byte, the slow way: [source, offset], or undefined for zero. */
function byteTable(list: readonly Extent[]): ([number, number] | undefined)[] {
  return list.flatMap(({ length, source, offset }) =>
    Array.from({ length }, (_, i): [number, number] | undefined =>
      source === ZERO_SOURCE ? undefined : [source, offset + i],
    ),
  );
}

describe('extent map', () => {
  it('knows of each byte where it is, in any order of asking', () => {
    fc.assert(
      fc.property(extents, fc.array(fc.nat()), (list, jumps) => {
        const map = mapOf(list);
        const table = byteTable(list);
        expect(map.size).toBe(table.length);
        const positions =
          table.length === 0 ? [] : [...table.keys(), ...jumps.map((jump) => jump % table.length)];
        for (const position of positions) {
          const extent = map.find(position);
          expect(map.startOf(extent)).toBeLessThanOrEqual(position);
          expect(map.endOf(extent)).toBeGreaterThan(position);
          const source = map.sourceOf(extent);
          const offset = map.offsetOf(extent) + position - map.startOf(extent);
          expect(source === ZERO_SOURCE ? undefined : [source, offset]).toEqual(table[position]);
        }
      }),
    );
  });

  it('merges what continues, so no two neighbours could be one', () => {
    fc.assert(
      fc.property(extents, (list) => {
        const map = mapOf(list);
        expect(map.count).toBeLessThanOrEqual(list.length);
        for (let extent = 1; extent < map.count; extent++) {
          expect(map.startOf(extent)).toBe(map.endOf(extent - 1));
          if (map.sourceOf(extent) !== map.sourceOf(extent - 1)) continue;
          expect(map.sourceOf(extent)).not.toBe(ZERO_SOURCE);
          const continued = map.offsetOf(extent - 1) + map.endOf(extent - 1) - map.startOf(extent - 1);
          expect(map.offsetOf(extent)).not.toBe(continued);
        }
      }),
    );
  });

  it('isZero and dataBytes tell the same as the bytes', () => {
    fc.assert(
      fc.property(extents, fc.nat(), fc.nat(), (list, a, b) => {
        const map = mapOf(list);
        const table = byteTable(list);
        expect(map.dataBytes).toBe(table.filter((entry) => entry !== undefined).length);
        const position = table.length === 0 ? 0 : a % table.length;
        const length = b % (table.length - position + 1);
        const zero = table.slice(position, position + length).every((entry) => entry === undefined);
        expect(map.isZero(position, length)).toBe(zero);
      }),
    );
  });

  it('refuses positions outside of the disk', () => {
    const map = mapOf([{ length: 10, source: 0, offset: 0 }]);
    for (const position of [-1, 10, 11, Number.NaN, Number.POSITIVE_INFINITY]) {
      expect(() => map.find(position), String(position)).toThrow(RangeError);
    }
    expect(() => mapOf([]).find(0)).toThrow(RangeError);
  });

  it('holds disks and offsets beyond 32 bits', () => {
    const builder = new ExtentMapBuilder();
    builder.addZeros(2 ** 52);
    builder.addData(512, 3, 2 ** 45 + 512);
    const map = builder.finish();
    const extent = map.find(2 ** 52 + 100);
    expect([map.sourceOf(extent), map.offsetOf(extent), map.size]).toEqual([3, 2 ** 45 + 512, 2 ** 52 + 512]);
    expect(map.isZero(2 ** 51, 2 ** 51)).toBe(true);
    expect(map.isZero(2 ** 51, 2 ** 51 + 1)).toBe(false);
  });

  it('holds many extents in 17 bytes each, and the end', () => {
    const builder = new ExtentMapBuilder();
    for (let i = 0; i < 100_000; i++) builder.addData(512, i % 2, i * 4096);
    const map = builder.finish();
    expect(map.count).toBe(100_000);
    expect(map.shared.buffer.byteLength).toBe(extentMapBytes(100_000));
    expect(extentMapBytes(100_000)).toBe(100_000 * 17 + 8);
    for (const i of [99_999, 0, 50_000, 50_001, 49_999, 1]) {
      expect(map.offsetOf(map.find(i * 512 + 511))).toBe(i * 4096);
    }
  });

  it('refuses extents that are none', () => {
    const builder = new ExtentMapBuilder();
    for (const length of [-1, 0.5, Number.NaN, 2 ** 53])
      expect(() => builder.addZeros(length)).toThrow(RangeError);
    for (const source of [-1, 255, 256, 0.5]) expect(() => builder.addData(1, source, 0)).toThrow(RangeError);
    for (const offset of [-1, 0.5, Number.NaN, 2 ** 53])
      expect(() => builder.addData(1, 0, offset)).toThrow(RangeError);
    builder.addZeros(Number.MAX_SAFE_INTEGER);
    expect(() => builder.addZeros(1)).toThrow(RangeError);
  });

  it('is seen by another thread without a copy', async () => {
    const map = mapOf([{ length: 10, source: 1, offset: 77 }]);
    const code = `const { workerData, parentPort } = require('node:worker_threads');
      parentPort.postMessage(new Float64Array(workerData.buffer, 16, 1)[0]);
      new Float64Array(workerData.buffer, 16, 1)[0] = 78;`;
    const worker = new Worker(code, { eval: true, workerData: map.shared });
    // Both are asked for beforehand: the thread's end may follow its message before a promise's continuation has run.
    const message = new Promise((resolve, reject) => worker.once('message', resolve).once('error', reject));
    const exit = new Promise((resolve) => worker.once('exit', resolve));
    expect(await message).toBe(77);
    await exit;
    expect(new ExtentMap(map.shared).offsetOf(0)).toBe(78);
  });
});
