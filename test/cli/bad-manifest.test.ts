import * as fs from 'node:fs';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { mountAt } from '../../src/host/mountinfo.js';
import { editManifest } from '../restore/demo-tree.js';
import { TestChunkmount } from '../support/chunkmount.js';
import { fuseDevice, requireAll, root } from '../support/requirements.js';
import { testBytes, writeTree } from '../support/trees.js';
import { expectError, toldError, traces } from './expectations.js';

type Manifest = Record<string, unknown>;

const disk = (changes: Manifest) => (manifest: Manifest) =>
  void Object.assign((manifest.disks as object[])[0]!, changes);
const top = (changes: Manifest) => (manifest: Manifest) => void Object.assign(manifest, changes);

/** A manifest comes from wherever the backup was: every command that reads one refuses what does not add up, and writes nothing. */
describe('a manifest with', () => {
  const chunkmount = new TestChunkmount();
  const tree = chunkmount.path('copy', 'mail01');
  const mountpoint = chunkmount.path('images');
  const restored = chunkmount.path('restored');

  beforeAll(() => requireAll(root, fuseDevice));

  beforeEach(() => {
    writeTree(tree, {
      name: 'mail01',
      disks: [{ target: 'vda', content: testBytes(20_000, 1), chunkSize: 4096 }],
    });
    fs.mkdirSync(mountpoint);
  });

  afterEach(() => {
    expect(mountAt(mountpoint)).toBeUndefined();
    expect(fs.readdirSync(mountpoint)).toEqual([]);
    expect(fs.readdirSync(chunkmount.directory).sort()).toEqual(['copy', 'images']);
    expect(fs.readdirSync(chunkmount.path('copy'))).toEqual(['mail01']);
    expect(traces(chunkmount)).toEqual([]);
    for (const directory of [chunkmount.path('copy'), mountpoint]) fs.rmSync(directory, { recursive: true });
  });

  afterAll(() => fs.rmSync(chunkmount.directory, { recursive: true }));

  it.each<[string, (manifest: Manifest) => void, RegExp]>([
    ['.. as a disk', disk({ target: '..', sums: '...xxh64' }), /is damaged: disks\.0\.target/],
    ['a disk outside the tree', disk({ target: '../x', sums: '../x.xxh64' }), /is damaged: disks\.0\.target/],
    ['sums at an absolute path', disk({ sums: '/etc/passwd' }), /is damaged: disks\.0: sums/],
    ['a name that leads outside', top({ name: '../../x' }), /is damaged: name/],
    ['domain XML outside the tree', top({ domainXml: '../x.xml' }), /is damaged: domainXml/],
    [
      'an extra file outside the tree',
      top({ extras: [{ file: '/etc/shadow', kind: 'nvram', size: 1 }] }),
      /is damaged: extras/,
    ],
    ['more chunks than its size has', disk({ chunkCount: 6 }), /is damaged: disks\.0/],
    ['a size that its chunks have not', disk({ size: 2 ** 50 }), /is damaged: disks\.0/],
    ['a later version', top({ version: 3 }), /has format version 3, this chunkmount knows 2$/],
  ])('%s is refused', async (_, edit, message) => {
    editManifest(tree, edit);
    const verified = await chunkmount.run(['verify', tree]);
    expect(verified.exitCode).toBe(4);
    expect(toldError(verified.stderr).message).toMatch(/has 1 problem$/);
    expect(verified.stdout).toMatch(new RegExp(message.source.replace('$', ''), 'm'));
    for (const args of [
      ['restore', tree, `--to=${restored}/`],
      ['image-mount', tree, mountpoint],
    ]) {
      const result = await chunkmount.run(args);
      expect([1, 4], result.stderr).toContain(result.exitCode);
      expect(expectError(result, result.exitCode!).message).toMatch(message);
    }
  });
});
