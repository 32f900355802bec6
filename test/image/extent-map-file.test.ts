import * as fs from 'node:fs';
import * as path from 'node:path';
import fc from 'fast-check';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { ChunkmountError } from '../../src/errors.js';
import { loadExtentMap, saveExtentMap } from '../../src/image/extent-map-file.js';
import { temporaryDirectory } from '../support/images.js';
import { extents, mapOf } from './extents.js';

let directory: string;
let file: string;
beforeAll(() => {
  directory = temporaryDirectory();
  file = path.join(directory, 'vda.extents');
});
afterAll(() => fs.rmSync(directory, { recursive: true }));

function expectDamaged(): void {
  expect(() => loadExtentMap(file)).toThrow(ChunkmountError);
  expect(() => loadExtentMap(file)).toThrow(`the extent map ${file} is damaged`);
}

describe('extent map file', () => {
  it('gives back the map that was saved, in shared memory', () => {
    fc.assert(
      fc.property(extents, (list) => {
        const map = mapOf(list);
        saveExtentMap(file, map);
        const loaded = loadExtentMap(file);
        expect(loaded.count).toBe(map.count);
        expect(loaded.size).toBe(map.size);
        expect(loaded.shared.buffer).toBeInstanceOf(SharedArrayBuffer);
        expect(Buffer.from(loaded.shared.buffer).equals(Buffer.from(map.shared.buffer))).toBe(true);
      }),
    );
  });

  it('finds any changed byte', () => {
    fc.assert(
      fc.property(extents, fc.nat(), fc.integer({ min: 1, max: 255 }), (list, at, change) => {
        saveExtentMap(file, mapOf(list));
        const bytes = fs.readFileSync(file);
        bytes[at % bytes.length]! ^= change;
        fs.writeFileSync(file, bytes);
        expectDamaged();
      }),
    );
  });

  it('finds any cut, and anything appended', () => {
    fc.assert(
      fc.property(extents, fc.nat(), (list, at) => {
        saveExtentMap(file, mapOf(list));
        const bytes = fs.readFileSync(file);
        fs.writeFileSync(file, bytes.subarray(0, at % bytes.length));
        expectDamaged();
        fs.writeFileSync(file, Buffer.concat([bytes, Buffer.alloc(1 + (at % 100))]));
        expectDamaged();
      }),
    );
  });

  it('refuses a header that claims more extents than there are, without making room for them', () => {
    saveExtentMap(file, mapOf([]));
    const bytes = fs.readFileSync(file);
    bytes.fill(0xff, 12, 16);
    fs.writeFileSync(file, bytes);
    expectDamaged();
  });

  it('refuses another version, and names a file that is missing', () => {
    saveExtentMap(file, mapOf([]));
    const bytes = fs.readFileSync(file);
    new Uint32Array(bytes.buffer, bytes.byteOffset + 8, 1)[0] = 2;
    fs.writeFileSync(file, bytes);
    expect(() => loadExtentMap(file)).toThrow('version 2');
    expect(() => loadExtentMap(path.join(directory, 'none'))).toThrow(path.join(directory, 'none'));
  });

  it('leaves nothing but the file, which only its owner can read', () => {
    saveExtentMap(file, mapOf([{ length: 5, source: 0, offset: 3 }]));
    expect(fs.readdirSync(directory)).toEqual(['vda.extents']);
    expect(fs.statSync(file).mode & 0o777).toBe(0o600);
  });
});
