import * as fs from 'node:fs';
import * as path from 'node:path';
import { describe, expect, it, onTestFinished } from 'vitest';
import { Tree } from '../../src/restore/tree.js';
import { checkExtra, copyExtra, extraOf } from '../../src/restore/tree-extra.js';
import { isOpen, openDescriptors } from '../support/descriptors.js';
import { replaceInFs } from '../support/replaced-fs.js';
import { testBytes, writeTree } from '../support/trees.js';
import { temporaryDirectory } from './built.js';
import { MIB } from './demo-tree.js';

const CONTENT = testBytes(2 * MIB + 5, 3);

/** A tree with the memory of a VM, and a file to copy that to. */
function begun() {
  const root = path.join(fs.realpathSync(temporaryDirectory()), 'mail01');
  const disk = { target: 'vda', content: new Uint8Array(0) };
  writeTree(root, { disks: [disk], extras: [{ file: 'state', kind: 'state', content: CONTENT }] });
  const tree = Tree.open(root);
  const to = `${root}.copy`;
  const fd = fs.openSync(to, 'w');
  onTestFinished(() => {
    tree.close();
    fs.closeSync(fd);
  });
  return { tree, file: path.join(root, 'state'), extra: extraOf(tree, 'state')!, to, fd };
}

describe('an extra file of a tree', () => {
  it('is copied whole, and synced', async () => {
    const { tree, extra, to, fd } = begun();
    const steps: number[] = [];
    const synced: number[] = [];
    replaceInFs('fsyncSync', (one: number) => void synced.push(one));
    await copyExtra(tree, extra, fd, { onBytes: (amount) => void steps.push(amount) });
    expect(fs.readFileSync(to).equals(CONTENT)).toBe(true);
    expect(steps).toEqual([MIB, MIB, 5]);
    expect(synced).toEqual([fd]);
  });

  it('is not copied to the end when the user wants it to stop', async () => {
    const { tree, extra, file, fd, to } = begun();
    const controller = new AbortController();
    const copying = copyExtra(tree, extra, fd, {
      signal: controller.signal,
      onBytes: () => controller.abort(),
    });
    await expect(copying).rejects.toThrow(/aborted/);
    expect(fs.statSync(to).size).toBe(MIB);
    expect(isOpen(file)).toBe(false);
  });

  it('that becomes shorter meanwhile is damaged', async () => {
    const { tree, extra, file, fd } = begun();
    const copying = copyExtra(tree, extra, fd, { onBytes: () => fs.truncateSync(file, MIB) });
    await expect(copying).rejects.toMatchObject({
      kind: 'integrity',
      message: `${file} ends after ${MIB} bytes`,
    });
    expect(isOpen(file)).toBe(false);
  });

  it.each([CONTENT.byteLength - 1, CONTENT.byteLength + 1])('of %i bytes is another one', (size) => {
    const { tree, extra, file } = begun();
    fs.truncateSync(file, size);
    const before = openDescriptors();
    expect(() => checkExtra(tree, extra)).toThrow(`has ${size} bytes instead of ${CONTENT.byteLength}`);
    expect(openDescriptors()).toBe(before);
  });
});
