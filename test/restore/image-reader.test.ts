import * as fs from 'node:fs';
import * as path from 'node:path';
import { describe, expect, it, onTestFinished } from 'vitest';
import { ImageReader } from '../../src/restore/image-reader.js';
import { openSource } from '../../src/restore/open-source.js';
import { Tree } from '../../src/restore/tree.js';
import { isOpen, openDescriptors } from '../support/descriptors.js';
import { replaceInFs } from '../support/replaced-fs.js';
import { testBytes, writeTree } from '../support/trees.js';
import { temporaryDirectory } from './built.js';
import { CHUNK, CHUNKS, demoTree, KIB } from './demo-tree.js';

/** Readers of all disks of a tree, until the test ends. */
async function readers(root: string, verify: boolean): Promise<ImageReader[]> {
  const tree = Tree.open(root);
  onTestFinished(() => tree.close());
  const images = [];
  for (const { target, chunkCount } of tree.manifest.disks) {
    const source = await openSource(tree, target);
    onTestFinished(() => source.close());
    images.push({ source: source.share(), verified: verify ? new Uint8Array(chunkCount) : undefined });
  }
  return ImageReader.forThread(images);
}

describe('an image reader', () => {
  it('keeps some hundred descriptors open, not all', async () => {
    const { root, content } = demoTree();
    const [reader] = await readers(root, false);
    const before = openDescriptors();
    const into = Buffer.alloc(content.byteLength);
    reader!.read(0, content.byteLength, into, 0);
    expect(into.equals(content)).toBe(true);
    expect(openDescriptors() - before).toBeLessThan(CHUNKS / 2);
  });

  it('reads parts of larger chunks than those of the first disk', async () => {
    const root = path.join(temporaryDirectory(), 'two');
    const contents = [4 * KIB, 64 * KIB].map((size, seed) => testBytes(size, seed + 1));
    const disks = contents.map((content, i) => {
      return { target: `vd${'ab'[i]}`, content, chunkSize: content.byteLength };
    });
    writeTree(root, { disks });
    const [, second] = await readers(root, true);
    const into = Buffer.alloc(100);
    second!.read(60 * KIB, 100, into, 0);
    expect(into.equals(contents[1]!.subarray(60 * KIB, 60 * KIB + 100))).toBe(true);
  });

  it('names a chunk that was cut off after it had been read', async () => {
    const { root, chunk } = demoTree();
    const [reader] = await readers(root, true);
    const into = Buffer.alloc(CHUNK);
    for (let i = 0; i < 2; i++) reader!.read(0, CHUNK, into, 0);
    fs.truncateSync(chunk(0), 1000);
    expect(() => reader!.read(0, CHUNK, into, 0)).toThrow(/00000000 has 1000 bytes instead of 4096/);
  });

  it('opens a chunk anew that could not be read', async () => {
    const { root, content, chunk } = demoTree();
    const [reader] = await readers(root, false);
    const into = Buffer.alloc(CHUNK);
    reader!.read(0, CHUNK, into, 0);
    expect(isOpen(fs.realpathSync(chunk(0)))).toBe(true);
    const restore = replaceInFs('readSync', () => {
      throw Object.assign(new Error('stale'), { code: 'ESTALE' });
    });
    expect(() => reader!.read(0, CHUNK, into, 0)).toThrow(/ESTALE/);
    restore();
    expect(isOpen(fs.realpathSync(chunk(0)))).toBe(false);
    reader!.read(0, CHUNK, into, 0);
    expect(into.equals(content.subarray(0, CHUNK))).toBe(true);
  });
});
