import { execFileSync } from 'node:child_process';
import * as fs from 'node:fs';
import * as path from 'node:path';
import { execa } from 'execa';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { noise } from '../support/images.js';
import { fuseDevice, program, requireAll, root } from '../support/requirements.js';
import { toldError } from './expectations.js';
import { CHUNK, filesBelow, TreeSessions } from './tree-sessions.js';
import { differing, type EntryStat } from './tree-stats.js';

/** Two chunk directories, the last chunk short. */
const CHUNKS = 259;
const SIZE = 258 * CHUNK + 1024;

/** As chunkfs.c has it: the pairs of the 16 hex digits of the chunk's number. */
function chunkfsPath(index: number): string {
  return index.toString(16).padStart(16, '0').match(/../g)!.join('/');
}

/** What `cp -r` of a chunkfs mount of `image` leaves, years ago. */
function writeChunkfsCopy(directory: string, image: Buffer): void {
  for (let index = 0; index * CHUNK < image.length; index++) {
    const file = path.join(directory, chunkfsPath(index));
    fs.mkdirSync(path.dirname(file), { recursive: true });
    fs.writeFileSync(file, image.subarray(index * CHUNK, (index + 1) * CHUNK), { mode: 0o600 });
    fs.utimesSync(file, 1_400_000_000, 1_400_000_000);
  }
}

function isOnPath(name: string): boolean {
  try {
    execFileSync('sh', ['-c', 'command -v "$1"', 'sh', name]);
    return true;
  } catch {
    return false;
  }
}

const sessions = new TreeSessions(['--layout=chunkfs']);
const { chunkmount, image, copy } = sessions;
const disk = path.join(copy, 'demo_disk0');
const old = noise(SIZE, 1);
const plain = (verb: string, ...args: string[]) =>
  chunkmount.run([verb, disk, ...args, `--size=${SIZE}`, '--chunk-size=4K']);

beforeAll(async () => {
  await requireAll(
    root,
    fuseDevice,
    program('rsync'),
    program('xxhsum', 'xxhash'),
    program('cmp', 'diffutils'),
  );
  fs.writeFileSync(image, old);
  writeChunkfsCopy(disk, old);
});
afterAll(() => sessions.close());

/** Makes chunk `index` another one. Answers the path that chunkfs has it at. */
function change(index: number, seed: number): string {
  sessions.write(index, noise(1000, seed));
  return `demo_disk0/${chunkfsPath(index)}`;
}

function sameAsImage(file: string): boolean {
  return fs.readFileSync(file).equals(fs.readFileSync(image));
}

describe('--layout=chunkfs goes on with a backup of virt-backup', () => {
  it('sends with --checksum only chunks that changed since', async () => {
    const changed = [change(3, 2), change(256, 3), change(258, 4)];
    expect(await sessions.backup('--checksum')).toEqual(changed);
    expect([...filesBelow(disk).keys()]).toEqual(Array.from({ length: CHUNKS }, (_, i) => chunkfsPath(i)));
    expect(Buffer.concat([...filesBelow(disk).values()]).equals(fs.readFileSync(image))).toBe(true);
  });

  it('and then without it as usual, with times and inodes that stay', async () => {
    expect(await sessions.backup()).toEqual([]);
    const before = promised(await sessions.look());
    const changed = change(255, 5);
    const after = promised(await sessions.look());
    expect(differing(before, after)).toEqual([changed]);
    expect(await sessions.backup()).toEqual([changed]);
    expect(differing(after, promised(await sessions.look()))).toEqual([]);
    const inodes = [...after.values()].map(({ inode }) => inode);
    expect(new Set(inodes).size).toBe(inodes.length);
    await execa('xxhsum', ['--strict', '--quiet', '-c', 'disk0.xxh64'], { cwd: copy });
  });

  it('with both transports', async () => {
    const shown = async (transport: string) => {
      const entries = promised(await sessions.look(['--layout=chunkfs', `--transport=${transport}`]));
      const inodes = [...entries.values()].map(({ inode }) => inode);
      expect(new Set(inodes).size).toBe(inodes.length);
      return new Map([...entries].map(([name, entry]) => [name, { ...entry, inode: 0 }]));
    };
    expect(differing(await shown('kernel'), await shown('native'))).toEqual([]);
  });
});

/** Chunks and directories. */
function promised(entries: ReadonlyMap<string, EntryStat>): Map<string, EntryStat> {
  return new Map([...entries].filter(([name, { isDirectory }]) => isDirectory || name.includes('/')));
}

describe('such a copy', () => {
  it('is verified, restored, compared and mounted like any other', async () => {
    expect(await chunkmount.succeed('verify', copy)).toMatch(/259 of 259 chunks read and right\nintact\n$/);
    const to = chunkmount.path('restored.raw');
    await chunkmount.succeed('restore', copy, `--to=${to}`);
    expect(sameAsImage(to)).toBe(true);
    const other = chunkmount.path('other');
    await execa('cp', ['-a', copy, other]);
    const changed = change(7, 8);
    expect(await sessions.backup()).toEqual([changed]);
    const { disks } = JSON.parse(await chunkmount.succeed('diff', other, copy, '--json'));
    expect(disks[0]).toMatchObject({ changedChunks: 1, ranges: [{ first: 7, count: 1 }] });
    await expectMounted([copy]);
  });

  it('has all its damages named', async () => {
    const damaged = chunkmount.path('damaged');
    await execa('cp', ['-a', copy, damaged]);
    const at = (name: string) => path.join(damaged, 'demo_disk0', name);
    fs.rmSync(at(chunkfsPath(5)));
    fs.writeFileSync(at(chunkfsPath(6)), noise(CHUNK, 99));
    fs.rmSync(at('00/00/00/00/00/00/01'), { recursive: true });
    for (const stray of ['01', '00/0', '00/00/00/00/00/00/00/100']) fs.writeFileSync(at(stray), '');
    const { exitCode, stdout } = await chunkmount.run(['verify', damaged]);
    expect(exitCode).toBe(4);
    expect(stdout.split('\n').slice(2)).toEqual([
      'demo_disk0/00/00/00/00/00/00/00/05 is missing (expected hash '.concat(hashOf(5), ')'),
      expect.stringContaining('demo_disk0/00/00/00/00/00/00/00/06 is corrupt'),
      expect.stringMatching(/^demo_disk0\/.*\/01\/00 to demo_disk0\/.*\/01\/02: 3 chunks are missing$/),
      'demo_disk0/00/0 does not belong to the tree',
      'demo_disk0/01 does not belong to the tree',
      'demo_disk0/00/00/00/00/00/00/00/100 does not belong to the tree',
      'DAMAGED',
      '',
    ]);
  });

  function hashOf(index: number): string {
    return fs.readFileSync(path.join(copy, 'disk0.xxh64'), 'latin1').split('\n')[index]!.slice(0, 16);
  }
});

describe('a copy of chunkfs without a manifest', () => {
  it('is restored and mounted, and verified as far as that can be', async () => {
    const to = chunkmount.path('plain.raw');
    expect(await plain('restore', `--to=${to}`)).toMatchObject({ exitCode: 0 });
    expect(sameAsImage(to)).toBe(true);
    fs.writeFileSync(to, 'x', { flag: 'r+' });
    const delta = await plain('restore', `--to=${to}`, '--delta', '--json');
    expect(JSON.parse(delta.stdout).disks[0]).toMatchObject({ written: 1, unchanged: CHUNKS - 1 });
    expect(sameAsImage(to)).toBe(true);
    const { exitCode, stdout } = await plain('verify');
    expect(exitCode).toBe(0);
    expect(stdout).toMatch(/^disk0: .* 259 chunks looked for\ncomplete; there are no sums/);
    await expectMounted([disk, `--size=${SIZE}`, '--chunk-size=4K']);
  });

  it.each([
    ['a size that it does not have', [`--size=${SIZE + CHUNK}`, '--chunk-size=4K'], 4],
    ['another chunk size', [`--size=${SIZE}`, '--chunk-size=8K'], 4],
    ['no size', [], 4],
    ['a size that is none', ['--size=much'], 2],
    ['a chunk size alone', ['--chunk-size=4K'], 2],
  ])('is refused with %s', async (_, args, exitCode) => {
    const result = await chunkmount.run(['verify', disk, ...args]);
    expect(result.exitCode).toBe(exitCode);
    expect(toldError(result.stderr).hint).toBeDefined();
  });

  it('is not taken for one where there is a manifest, or no chunk', async () => {
    for (const place of [copy, path.join(disk, '00/00/00/00/00/00/00'), chunkmount.path('nothing')]) {
      const result = await chunkmount.run(['verify', place, `--size=${SIZE}`, '--chunk-size=4K']);
      expect([place, result.exitCode]).toEqual([place, 2]);
      if (place === copy) expect(toldError(result.stderr).message).toBe(`${copy} is a tree with a manifest`);
    }
  });
});

/** Mounts the images of a tree, and compares the one that is there. */
async function expectMounted([tree = '', ...options]: readonly string[]): Promise<void> {
  const mountpoint = fs.mkdtempSync(chunkmount.path('images-'));
  await chunkmount.succeed('image-mount', tree, mountpoint, ...options);
  try {
    expect(sameAsImage(path.join(mountpoint, 'disk0.img'))).toBe(true);
  } finally {
    await chunkmount.succeed('image-unmount', mountpoint);
  }
}

describe('C chunkfs', () => {
  it.runIf(isOnPath('unchunkfs'))('mounts our copy as the image that it was', async () => {
    const mountpoint = fs.mkdtempSync(chunkmount.path('unchunkfs-'));
    await execa('unchunkfs', [disk, mountpoint]);
    try {
      expect(sameAsImage(path.join(mountpoint, 'image'))).toBe(true);
    } finally {
      await execa('umount', [mountpoint]);
    }
  });

  it.runIf(isOnPath('chunkfs'))('shows the same files as we do', async () => {
    const mountpoint = fs.mkdtempSync(chunkmount.path('chunkfs-'));
    await execa('chunkfs', [String(CHUNK), image, mountpoint]);
    try {
      expect(filesBelow(disk)).toEqual(filesBelow(mountpoint));
    } finally {
      await execa('umount', [mountpoint]);
    }
  });
});
