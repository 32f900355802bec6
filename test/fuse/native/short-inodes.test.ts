import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { geometry } from '../../../src/chunks/geometry.js';
import {
  directoryInodeNumber,
  diskPart,
  INODE_CHUNK,
  INODE_DIRECTORY,
  INODE_DISK,
  inode,
} from '../../../src/chunks/inodes.js';
import { ShortInodes } from '../../../src/fuse/native/short-inodes.js';

const CHUNK = 256 * 1024;
/** The largest disk that has short numbers. */
const MOST = 2 ** 27 - 2 ** 19 - 2 ** 17;

function disk(target: string, chunks = 1000) {
  return { target, part: diskPart(target), geometry: geometry(chunks * CHUNK, CHUNK) };
}

/** The short numbers of everything that stands at the ends of a disk's ranges. */
function samples(short: ShortInodes, target: string, chunks: number): number[] {
  const part = diskPart(target);
  const directories = Math.ceil(chunks / 256);
  return [
    inode(part, INODE_DISK, 0),
    inode(part, INODE_DISK, 1),
    inode(part, INODE_DIRECTORY, 0),
    ...(directories > 1 ? [inode(part, INODE_DIRECTORY, directories - 1)] : []),
    // Those of chunkfs that hold directories.
    ...[1, 2, 3, 4, 5, 6].flatMap((rank) => {
      const last = Math.ceil(chunks / 256 ** (rank + 1)) - 1;
      const numbers = last === 0 ? [0] : [0, last];
      return numbers.map((number) => inode(part, INODE_DIRECTORY, directoryInodeNumber(rank, number)));
    }),
    inode(part, INODE_CHUNK, 0),
    ...(chunks > 1 ? [inode(part, INODE_CHUNK, chunks - 1)] : []),
  ].map((number) => short.of(number));
}

describe('ShortInodes', () => {
  it('are unique, and below the number that libfuse takes for unknown', () => {
    const target = fc.oneof(
      fc.stringMatching(/^(hd|sd|vd|xvd)[a-z]$/),
      fc.nat(99).map((n) => `disk${n}`),
      fc.stringMatching(/^[a-z]{1,8}$/),
    );
    const targets = fc.uniqueArray(target, { minLength: 1, maxLength: 31, selector: diskPart });
    fc.assert(
      fc.property(targets, fc.constantFrom(1, 256, 257, 1000, MOST), (names, chunks) => {
        const short = new ShortInodes(names.map((name) => disk(name, chunks)));
        const all = [1, 2, 3, 4, ...names.flatMap((name) => samples(short, name, chunks))];
        expect(new Set(all).size).toBe(all.length);
        expect(all.every((number) => Number.isInteger(number) && number > 0 && number < 2 ** 32 - 1)).toBe(
          true,
        );
      }),
    );
  });

  it('of a disk do not depend on the others in the tree', () => {
    const usual = ['hda', 'hdb', 'sda', 'sdb', 'sdc', 'vda', 'vdb', 'vdc', 'vdd', 'disk0', 'disk1', 'disk2'];
    const together = new ShortInodes(usual.map((name) => disk(name)));
    for (const name of usual) {
      expect(samples(together, name, 1000)).toEqual(samples(new ShortInodes([disk(name)]), name, 1000));
    }
  });

  // Part of the stat contract: other numbers would make restic and borg read everything once more.
  it('are what they always were', () => {
    const short = new ShortInodes([disk('disk0'), disk('vda')]);
    expect(short.of(2)).toBe(2);
    expect(samples(short, 'disk0', 1000)).toEqual([
      3355443200, 3355443201, 3355443202, 3355443205, 3355965428, 3355967476, 3355967484, 3355967485,
      3355967486, 3355967487, 3355967488, 3355968487,
    ]);
    expect(samples(short, 'vda', 1000).at(-2)).toBe(9 * 2 ** 27 + 2 ** 19);
  });

  it('are refused for more disks than there is room for', () => {
    const names = Array.from({ length: 32 }, (_, i) => `disk${i}`);
    expect(() => new ShortInodes(names.slice(0, 31).map((name) => disk(name)))).not.toThrow();
    expect(() => new ShortInodes(names.map((name) => disk(name)))).toThrow(
      '32 disks are too many for the native transport, which takes 31',
    );
  });

  it('are refused for more chunks than there is room for', () => {
    expect(() => new ShortInodes([disk('vda', MOST)])).not.toThrow();
    expect(() => new ShortInodes([disk('vda', MOST + 1)])).toThrow(
      'disk vda has too many chunks for the native transport: 133562369',
    );
  });
});
