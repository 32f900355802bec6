import { execFileSync } from 'node:child_process';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { type ChunkHasher, createHasher, nativeHasher, wasmHasher } from '../../src/chunks/chunk-hash.js';
import { formatHash } from '../../src/chunks/paths.js';

function hex(hasher: ChunkHasher, data: Uint8Array): string {
  const halves = new Uint32Array(4);
  hasher.hash(data, halves, 1);
  expect([halves[0], halves[3]]).toEqual([0, 0]);
  return formatHash(halves[1]!, halves[2]!);
}

function text(characters: string): Uint8Array {
  return new TextEncoder().encode(characters);
}

describe.each([
  ['native', await nativeHasher()],
  ['wasm', await wasmHasher()],
] as const)('the %s hasher', (implementation, hasher) => {
  it('says what it is', () => {
    expect(hasher.implementation).toBe(implementation);
  });

  // From `printf … | xxhsum -H1` of xxHash 0.8.1.
  it.each([
    ['', 'ef46db3751d8e999'],
    ['a', 'd24ec4f1a98c6e5b'],
    ['abc', '44bc2cf5ad770999'],
    ['0123456789abcdef0123456789abcdef0123456789', 'a76190c3acf08a1c'],
  ])('knows the hash of "%s"', (characters, expected) => {
    expect(hex(hasher, text(characters))).toBe(expected);
  });

  it('hashes a window of a larger buffer', () => {
    expect(hex(hasher, text('xxabcxx').subarray(2, 5))).toBe('44bc2cf5ad770999');
  });

  it('hashes in pieces, and forgets what was not ended', () => {
    const halves = new Uint32Array(2);
    hasher.begin();
    hasher.update(text('forgotten'));
    for (let round = 0; round < 2; round++) {
      hasher.begin();
      for (const piece of ['a', '', 'bc']) hasher.update(text(piece));
      hasher.end(halves, 0);
      expect(formatHash(halves[0]!, halves[1]!)).toBe('44bc2cf5ad770999');
    }
  });

  it('hashes shared memory', () => {
    const shared = new Uint8Array(new SharedArrayBuffer(3));
    shared.set(text('abc'));
    expect(hex(hasher, shared)).toBe('44bc2cf5ad770999');
  });
});

describe('createHasher', () => {
  it('takes the native addon where it can be had', async () => {
    expect((await createHasher()).implementation).toBe('native');
  });

  it('does without the native addon where it cannot be loaded', () => {
    const module = new URL('../../build/chunks/chunk-hash.js', import.meta.url);
    const script = `import { createHasher } from ${JSON.stringify(module)};
      const hasher = await createHasher(), halves = new Uint32Array(2);
      hasher.hash(new TextEncoder().encode('abc'), halves, 0);
      console.log(hasher.implementation, halves[0], halves[1]);`;
    const output = execFileSync(process.execPath, ['--no-addons', '--input-type=module', '--eval', script]);
    expect(output.toString().trim()).toBe(`wasm ${0x44bc2cf5} ${0xad770999}`);
  });
});

describe('both hashers', () => {
  it('agree with each other', async () => {
    const native = await nativeHasher();
    const wasm = await wasmHasher();
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 5000 }), (data) => {
        expect(hex(native, data)).toBe(hex(wasm, data));
      }),
    );
    const large = Uint8Array.from({ length: 16 * 1024 * 1024 + 1 }, (_, i) => (i * 2654435761) >>> 24);
    expect(hex(native, large)).toBe(hex(wasm, large));
  });
});
