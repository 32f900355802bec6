import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { type MapLine, parseMapLine } from '../../src/image/map-line.js';

const bytes = fc.nat(Number.MAX_SAFE_INTEGER);
const mapLine: fc.Arbitrary<MapLine> = fc.record(
  { start: bytes, length: bytes, depth: bytes, zero: fc.boolean(), data: fc.boolean(), offset: bytes },
  { requiredKeys: ['start', 'length', 'depth', 'zero', 'data'] },
);

describe('line of qemu-img map', () => {
  it('reads lines as QEMU 7.2 and 8.2 print them', () => {
    expect(
      parseMapLine(
        '[{ "start": 0, "length": 65536, "depth": 1, "present": true, "zero": false, "data": true, "offset": 327680},',
      ),
    ).toEqual({ start: 0, length: 65536, depth: 1, zero: false, data: true, offset: 327680 });
    expect(
      parseMapLine(
        '{ "start": 65536, "length": 512, "depth": 0, "present": true, "zero": false, "data": true, "compressed": true}]',
      ),
    ).toEqual({ start: 65536, length: 512, depth: 0, zero: false, data: true });
  });

  it('reads whatever QEMU may print, wherever in the list it stands', () => {
    fc.assert(
      fc.property(mapLine, fc.constantFrom('', '['), fc.constantFrom('', ',', ']'), (line, before, after) => {
        expect(parseMapLine(`${before}${JSON.stringify(line)}${after}`)).toEqual(line);
      }),
    );
  });

  it('finds no extent in a line without one', () => {
    for (const line of ['', '[', ']', '[]', ',']) expect(parseMapLine(line)).toBeUndefined();
  });

  it('refuses numbers that are no byte counts, and what is missing or of another type', () => {
    const good = { start: 0, length: 1, depth: 0, zero: false, data: true, offset: 0 };
    for (const key of ['start', 'length', 'depth', 'offset']) {
      for (const value of [-1, 0.5, 2 ** 53, '0', null, true]) {
        expect(() => parseMapLine(JSON.stringify({ ...good, [key]: value })), `${key} ${value}`).toThrow();
      }
    }
    for (const key of ['start', 'length', 'depth', 'zero', 'data']) {
      expect(() => parseMapLine(JSON.stringify({ ...good, [key]: undefined })), key).toThrow();
    }
    expect(() =>
      parseMapLine('{"start": 99999999999999999999, "length": 1, "depth": 0, "zero": true, "data": false}'),
    ).toThrow();
  });

  it('either gives a whole extent or throws, whatever the text', () => {
    const text = fc.oneof(
      fc.string(),
      fc.json(),
      mapLine.map((line) => JSON.stringify(line).slice(0, -1)),
    );
    fc.assert(
      fc.property(text, (line) => {
        let parsed: MapLine | undefined;
        try {
          parsed = parseMapLine(line);
        } catch {
          return;
        }
        if (parsed === undefined) return;
        expect(
          [parsed.start, parsed.length, parsed.depth].every((n) => Number.isSafeInteger(n) && n >= 0),
        ).toBe(true);
      }),
    );
  });
});
