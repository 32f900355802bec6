import * as fs from 'node:fs';
import * as path from 'node:path';
import { expect, it } from 'vitest';
import { readSums } from '../../src/restore/sums.js';
import { Tree } from '../../src/restore/tree.js';
import { checkDiskDirectory, checkTopLevel } from '../../src/restore/tree-check.js';
import { openDescriptors } from '../support/descriptors.js';
import { writeTree } from '../support/trees.js';
import { temporaryDirectory } from './built.js';
import { CHUNK, demoContent, demoTree, MIB, XML } from './demo-tree.js';

it('a tree that cannot be opened leaves no descriptor', () => {
  const { root } = demoTree();
  fs.writeFileSync(path.join(root, 'manifest.json'), '{');
  const before = openDescriptors();
  expect(() => Tree.open(root)).toThrow(/manifest\.json/);
  fs.rmSync(path.join(root, 'manifest.json'));
  expect(() => Tree.open(root)).toThrow(/is missing/);
  expect(openDescriptors()).toBe(before);
});

it('a manifest that no tree needs to be as large as is not read', () => {
  const { root } = demoTree();
  fs.truncateSync(path.join(root, 'manifest.json'), 8 * MIB + 1);
  expect(() => Tree.open(root)).toThrow(/manifest\.json is too large: 8388609 bytes$/);
});

it('looking at a tree leaves no descriptor, however many directories it has', () => {
  const root = path.join(temporaryDirectory(), 'mail01');
  const disks = [{ target: 'vda', content: demoContent(), chunkSize: CHUNK, look: 'chunkfs' }] as const;
  writeTree(root, { name: 'mail01', xml: XML, disks });
  const strays = ['mail01_vda/01', 'mail01_vda/00/00/lost', 'notes'];
  for (const stray of strays) fs.mkdirSync(path.join(root, stray));
  const before = openDescriptors();
  const tree = Tree.open(root);
  const found = [...checkTopLevel(tree), ...checkDiskDirectory(tree, 'vda')];
  const { problems } = readSums(tree, tree.disk('vda'));
  expect(openDescriptors()).toBe(before + 1);
  tree.close();
  expect(problems).toEqual([]);
  expect(found.map(({ path: name }) => name).sort()).toEqual(strays.sort());
  expect(openDescriptors()).toBe(before);
});
