import * as fs from 'node:fs';
import * as path from 'node:path';
import { describe, expect, it } from 'vitest';
import type { ChunkSource } from '../../src/restore/chunk-source.js';
import { openSource } from '../../src/restore/open-source.js';
import { Tree } from '../../src/restore/tree.js';
import { openDescriptors } from '../support/descriptors.js';
import { writeTree } from '../support/trees.js';
import { temporaryDirectory } from './built.js';
import { CHUNK, CHUNKS, demoContent, demoTree } from './demo-tree.js';

/** Lets `use` read the disk vda of a tree. */
async function withSource(root: string, use: (source: ChunkSource) => void): Promise<void> {
  const tree = Tree.open(root);
  try {
    const source = await openSource(tree, 'vda');
    try {
      use(source);
    } finally {
      source.close();
    }
  } finally {
    tree.close();
  }
}

/** Does to each chunk all that can be done. Returns how many failed. */
function readAll(source: ChunkSource): number {
  const into = Buffer.alloc(CHUNK);
  let failures = 0;
  for (let chunk = 0; chunk < CHUNKS; chunk++) {
    const ways = [
      () => source.read(chunk, into),
      () => source.verify(chunk),
      () => source.checkSize(chunk),
      () => fs.closeSync(source.openChunk(chunk)),
    ];
    for (const way of ways) {
      try {
        way();
      } catch {
        failures++;
      }
    }
  }
  return failures;
}

describe('a chunk source', () => {
  it('goes on in a directory of chunks after one that is missing', async () => {
    const { root, content, chunk } = demoTree();
    fs.rmSync(path.dirname(chunk(256)), { recursive: true });
    await withSource(root, (source) => {
      const into = Buffer.alloc(CHUNK);
      source.read(0, into);
      expect(() => source.read(256, into)).toThrow(/is missing/);
      source.read(1, into);
      expect(into.equals(content.subarray(CHUNK, 2 * CHUNK))).toBe(true);
    });
  });

  it.each([
    ['first', 0],
    ['last', 15],
  ])('compares the %s digit of a hash', async (_, digit) => {
    const { root } = demoTree();
    const file = path.join(root, 'vda.xxh64');
    const sums = fs.readFileSync(file, 'latin1');
    const other = sums[digit] === '0' ? '1' : '0';
    fs.writeFileSync(file, sums.slice(0, digit) + other + sums.slice(digit + 1));
    await withSource(root, (source) => {
      expect(() => source.verify(0)).toThrow(/is corrupt/);
    });
  });

  it.each([undefined, 'chunkfs'] as const)(
    'gives its descriptors back, damaged chunks or not; in the layout %s',
    async (look) => {
      const root = path.join(temporaryDirectory(), 'mail01');
      const disk = { target: 'vda', content: demoContent(), chunkSize: CHUNK, look };
      writeTree(root, { name: 'mail01', disks: [disk] });
      const before = openDescriptors();
      await withSource(root, (source) => expect(readAll(source)).toBe(0));
      expect(openDescriptors()).toBe(before);
      const inLayout = look === undefined ? ['vda', '000001'] : ['mail01_vda', ...Array(6).fill('00'), '01'];
      const second = path.join(root, ...inLayout);
      const names = fs.readdirSync(second).sort();
      fs.truncateSync(path.join(second, names[3]!), 1);
      fs.rmSync(path.join(second, names[4]!));
      // The third directory of chunks is none.
      const third = second.replace(/1$/, '2');
      fs.rmSync(third, { recursive: true });
      fs.writeFileSync(third, '');
      await withSource(root, (source) => expect(readAll(source)).toBe(4 * (2 + CHUNKS - 512)));
      expect(openDescriptors()).toBe(before);
    },
  );
});
