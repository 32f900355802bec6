import * as fs from 'node:fs';
import * as path from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { run } from '../../src/host/exec.js';
import { mountAt } from '../../src/host/mountinfo.js';
import { TestChunkmount } from '../support/chunkmount.js';
import { build, fuseDevice, program, requireAll, root } from '../support/requirements.js';
import { CHUNK_DAMAGES } from './damages.js';
import { CHUNK, demoTree, flipBit, swap } from './demo-tree.js';
import { daemonOf, expectError, mountImages, readAt, segments } from './image-session.js';

const chunkmount = new TestChunkmount();

beforeAll(() => requireAll(root, build, fuseDevice, program('python3')));

afterAll(() => chunkmount.close());

describe('a damaged tree', () => {
  it.each(CHUNK_DAMAGES)('with $name: an error where it is read, and its name in the log', async (one) => {
    const demo = demoTree();
    one.damage(demo);
    const { image, log } = await mountImages(chunkmount, demo.root);
    const reading = readAt(image('vda'), 0, demo.content.byteLength);
    if (one.restore === undefined) {
      expect((await reading).equals(demo.content)).toBe(true);
      expect(log()).toBe('');
      return;
    }
    await expect(reading).rejects.toThrow(/Input\/output error/);
    // A thread's words go through the main thread.
    await expect.poll(log, { timeout: 60_000 }).toMatch(new RegExp(one.restore.source, 'm'));
  });

  it('gives everything but the damaged chunk, and names that once for each thread at most', async () => {
    const { root: tree, content, chunk } = demoTree();
    flipBit(chunk(7));
    const { image, log } = await mountImages(chunkmount, tree);
    for (let i = 0; i < 5; i++) await expect(readAt(image('vda'), 7 * CHUNK, 1)).rejects.toThrow();
    const before = await readAt(image('vda'), 0, 7 * CHUNK);
    const after = await readAt(image('vda'), 8 * CHUNK, content.byteLength);
    expect(before.equals(content.subarray(0, 7 * CHUNK))).toBe(true);
    expect(after.equals(content.subarray(8 * CHUNK))).toBe(true);
    const lines = log().trim().split('\n');
    expect(lines.length).toBeLessThanOrEqual(3);
    for (const line of lines)
      expect(line).toMatch(/\/mail01\/vda\/000000\/00000007 is corrupt: expected hash/);
  });

  it('can be mended while it is mounted', async () => {
    const { root: tree, content, chunk } = demoTree();
    const good = fs.readFileSync(chunk(7));
    fs.rmSync(chunk(7));
    const { image } = await mountImages(chunkmount, tree);
    await expect(readAt(image('vda'), 7 * CHUNK, 10)).rejects.toThrow(/Input\/output error/);
    fs.writeFileSync(chunk(7), good);
    expect((await readAt(image('vda'), 0, content.byteLength)).equals(content)).toBe(true);
  });

  it('is shown as it is by --no-verify: also by programs that skip holes', async () => {
    const { root: tree, content, chunk, beside } = demoTree();
    flipBit(chunk(7));
    flipBit(chunk(150));
    swap(chunk(20), chunk(21));
    fs.rmSync(chunk(30));
    fs.truncateSync(chunk(40), 100);
    const { image } = await mountImages(chunkmount, tree, '--no-verify');
    const expected = Buffer.from(content);
    expected[7 * CHUNK + 100]! ^= 4;
    expected[150 * CHUNK + 100]! ^= 4;
    content.copy(expected, 20 * CHUNK, 21 * CHUNK, 22 * CHUNK);
    content.copy(expected, 21 * CHUNK, 20 * CHUNK, 21 * CHUNK);
    for (const missing of [30, 40]) {
      await expect(readAt(image('vda'), missing * CHUNK, 1)).rejects.toThrow(/Input\/output error/);
    }
    const tail = 41 * CHUNK;
    await run('dd', [`if=${image('vda')}`, `of=${beside('head')}`, `bs=${CHUNK}`, 'count=30']);
    expect(fs.readFileSync(beside('head')).equals(expected.subarray(0, 30 * CHUNK))).toBe(true);
    expect((await readAt(image('vda'), tail, content.byteLength)).equals(expected.subarray(tail))).toBe(true);
    expect(await segments(image('vda'))).toEqual([[0, content.byteLength]]);
    expect(fs.statSync(image('vda')).blocks).toBe(Math.ceil(content.byteLength / 512));
  });

  it.each([
    ['missing', (file: string) => fs.rmSync(file), /vda\.xxh64 is missing$/],
    ['cut off', (file: string) => fs.truncateSync(file, 500), /vda\.xxh64 has 500 bytes instead of/],
    ['damaged', (file: string) => flipBit(file, 20), /vda\.xxh64 is damaged in line 1$/],
  ])('whose sums are %s needs --no-verify', async (_, damage, message) => {
    const { root: tree, content } = demoTree();
    damage(path.join(tree, 'vda.xxh64'));
    const mountpoint = fs.mkdtempSync(chunkmount.path('images-'));
    const error = expectError(await chunkmount.run(['image-mount', tree, mountpoint]), 4);
    expect(error.message).toMatch(message);
    expect(error.hint).toContain('--no-verify');
    expect(mountAt(mountpoint)).toBeUndefined();
    expect(daemonOf(mountpoint)).toEqual([]);
    const { image } = await mountImages(chunkmount, tree, '--no-verify');
    expect((await readAt(image('vda'), 0, content.byteLength)).equals(content)).toBe(true);
  });
});
