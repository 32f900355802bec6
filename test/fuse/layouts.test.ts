import * as path from 'node:path';
import { afterAll, describe, expect, it } from 'vitest';
import { createHasher } from '../../src/chunks/chunk-hash.js';
import { StoredIndex } from '../../src/content-index/index-file.js';
import { saveIndex } from '../../src/content-index/save-index.js';
import { ChunkFilesystem } from '../../src/fuse/chunk-filesystem.js';
import type { Attributes } from '../../src/fuse/filesystem.js';
import { CHUNK, type Look, noise, type Piece, SampleTrees, SNAPSHOT } from './sample-tree.js';

const trees = new SampleTrees();
afterAll(() => trees.remove());

const hasher = await createHasher();

function open(pieces: readonly Piece[], look: Look): ChunkFilesystem {
  return new ChunkFilesystem(trees.tree({ vda: pieces }, CHUNK, look), hasher);
}

function attributes(filesystem: ChunkFilesystem, inode: number): Attributes | number {
  const into = {} as Attributes;
  const error = filesystem.getattr(inode, into);
  return error < 0 ? error : { ...into };
}

/** Everything below a directory, with its inode; each entry must be what lookup and getattr say of it. */
function walk(filesystem: ChunkFilesystem, inode: number, path: string): Map<string, number> {
  const found = new Map<string, number>();
  const names: string[] = [];
  // One entry a call, as a kernel with a small buffer would.
  for (let from = 0; ; ) {
    let next = from;
    filesystem.readdir(inode, from, (name, child, kind, cookie) => {
      if (next !== from) return false;
      next = cookie;
      names.push(name);
      if (name === '.') expect(child).toBe(inode);
      if (name.startsWith('.')) return true;
      // An `expect` for each of so many takes long.
      if (filesystem.lookup(inode, name) !== child) expect.fail(`${path}/${name} is not found`);
      const { inode: number, kind: shown } = attributes(filesystem, child) as Attributes;
      if (number !== child || shown !== kind) expect.fail(`${path}/${name} is not what its entry says`);
      if (kind === 'directory') expect(filesystem.lookup(child, '..')).toBe(inode);
      found.set(`${path}/${name}`, child);
      if (kind === 'directory')
        for (const [below, number] of walk(filesystem, child, `${path}/${name}`)) found.set(below, number);
      return true;
    });
    if (next === from) break;
    from = next;
  }
  expect(names.slice(0, 2)).toEqual(['.', '..']);
  return found;
}

const ENOENT = -2;

describe('the layout of chunkfs', () => {
  it('has a path and an inode of its own for each chunk and directory', () => {
    // 65,537 chunks: the second directory of rank 1 begins.
    const filesystem = open([65_537 * CHUNK], { layout: 'chunkfs' });
    const top = filesystem.lookup(1, 'demo_vda');
    const found = walk(filesystem, top, 'demo_vda');
    expect(new Set(found.values()).size).toBe(found.size);
    const chunks = [...found.keys()].filter((path) => path.split('/').length === 9);
    expect(chunks).toHaveLength(65_537);
    expect(chunks[0]).toBe('demo_vda/00/00/00/00/00/00/00/00');
    expect(chunks.at(-1)).toBe('demo_vda/00/00/00/00/00/01/00/00');
    // 5 directories 00 above, then 2, then 257.
    expect(found.size - chunks.length).toBe(5 + 2 + 257);
    expect(attributes(filesystem, found.get('demo_vda/00/00/00/00/00')!)).toMatchObject({ nlink: 4 });
  });

  it('knows no other names', () => {
    const filesystem = open([noise(300 * CHUNK)], { layout: 'chunkfs' });
    expect(filesystem.lookup(1, 'vda')).toBe(ENOENT);
    let inode = filesystem.lookup(1, 'demo_vda');
    for (let level = 0; level < 7; level++) {
      for (const name of ['01', '1', '0', '000000', 'GG']) {
        if (level !== 6 || name !== '01')
          expect(filesystem.lookup(inode, name), `${level} ${name}`).toBe(ENOENT);
      }
      inode = filesystem.lookup(inode, '00');
    }
    expect(filesystem.lookup(inode, 'ff')).toBeGreaterThan(0);
    expect(filesystem.lookup(inode, '00000000')).toBe(ENOENT);
  });
});

describe('a tree without chunks of zeros', () => {
  const data = (seed: number) => noise(CHUNK, seed);
  // Zeros of the image, zeros that must be read to know, and a short chunk of zeros at the end.
  const pieces = [data(1), CHUNK, Buffer.alloc(CHUNK), data(2), 300 * CHUNK, data(3), 100];

  it('has the others, and all directories', () => {
    const filesystem = open([...pieces], { skipZeros: true });
    expect([...walk(filesystem, filesystem.lookup(1, 'vda'), 'vda').keys()]).toEqual([
      'vda/000000',
      'vda/000000/00000000',
      'vda/000000/00000003',
      'vda/000001',
      'vda/000001/00000130',
    ]);
    const first = filesystem.lookup(filesystem.lookup(filesystem.lookup(1, 'vda'), '000000'), '00000000');
    expect(attributes(filesystem, first)).toMatchObject({ blocks: 8, mtime: SNAPSHOT });
    expect(attributes(filesystem, first + 1)).toBe(ENOENT);
    expect(filesystem.lookup(filesystem.lookup(filesystem.lookup(1, 'vda'), '000000'), '00000001')).toBe(
      ENOENT,
    );
  });

  it('has sums that give the hash of each chunk, and say which have no file', () => {
    const look = { skipZeros: true };
    const [kept, skipping] = [open([...pieces], {}), open([...pieces], look)];
    const [all, some] = [kept, skipping].map((filesystem) => {
      const into = Buffer.alloc(100_000);
      const length = filesystem.read(filesystem.lookup(1, 'vda.xxh64'), 0, into.length, into, 0);
      expect(attributes(filesystem, filesystem.lookup(1, 'vda.xxh64'))).toMatchObject({ size: length });
      return into.toString('latin1', 0, length).trimEnd().split('\n');
    });
    expect(some).toHaveLength(306);
    const present = [0, 3, 0x130];
    expect(some).toEqual(
      all!.map((line, i) => (present.includes(i) ? line : `#${line.slice(0, 16)} ${line.slice(18)}`)),
    );
  });

  it.each<[what: string, pieces: readonly Piece[], mtime: number]>([
    ['its old time while the same chunks are zeros', [data(7), CHUNK, data(8)], SNAPSHOT - 20],
    ['a new time when its first chunk became zeros', [CHUNK, CHUNK, data(2)], SNAPSHOT + 100],
    ['a new time when its last chunk became zeros', [data(1), CHUNK, CHUNK], SNAPSHOT + 100],
    ['a new time when zeros became data', [data(1), data(5), data(2)], SNAPSHOT + 100],
  ])('has directories with %s, whoever asks first', (_, pieces, mtime) => {
    const before = trees.tree({ vda: [data(1), CHUNK, data(2)] }, CHUNK, { skipZeros: true });
    const { rows, directoryMtimes } = before.disks[0]!;
    new ChunkFilesystem(before, hasher).views[0]!.resolver.resolveRange(0, 3);
    const header = { chunkSize: CHUNK, chunkCount: 3, diskSize: 3 * CHUNK, diskDirectoryMtime: SNAPSHOT };
    const file = path.join(path.dirname(trees.image('vda')), 'vda.v1');
    saveIndex(file, { ...header, directoryMtimes }, rows, undefined, hasher);
    const stored = StoredIndex.open(file, hasher) as StoredIndex;
    const tree = trees.tree({ vda: pieces }, CHUNK, { skipZeros: true });
    const times = { snapshot: SNAPSHOT + 100, newest: SNAPSHOT, unsettled: 0 };
    const disk = { ...tree.disks[0]!, times, stored, compareDirectories: true };
    const filesystem = new ChunkFilesystem({ ...tree, disks: [disk] }, hasher);
    const directory = filesystem.lookup(filesystem.lookup(1, 'vda'), '000000');
    expect(attributes(filesystem, directory)).toMatchObject({ mtime });
    stored.close();
  });
});
