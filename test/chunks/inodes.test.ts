import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import {
  diskPart,
  INODE_CHUNK,
  INODE_DIRECTORY,
  INODE_DISK,
  inode,
  inodeHigh,
  ROOT_INODE,
  SUMS_NUMBER,
} from '../../src/chunks/inodes.js';

const letters = 'abcdefghijklmnopqrstuvwxyz';

/** a … z, aa … zz, aaa … tzz: what libvirt calls its first 14,222 disks. */
function diskLetters(): string[] {
  const one = [...letters];
  const two = one.flatMap((first) => one.map((second) => first + second));
  const three = [...'abcdefghijklmnopqrst'].flatMap((first) => two.map((rest) => first + rest));
  return [...one, ...two, ...three];
}

describe('diskPart', () => {
  // Part of the stat contract: another number is another inode number in every backup.
  it.each([
    ['hda', 0],
    ['sda', 16384],
    ['vda', 32768],
    ['vdb', 32769],
    ['vdz', 32793],
    ['vdaa', 32794],
    ['xvda', 49152],
    ['disk0', 98304],
    ['disk9999', 108303],
    ['nvme0n1', 118480],
  ])('of %s is %i, for ever', (target, part) => {
    expect(diskPart(target)).toBe(part);
  });

  it('differs for all names that libvirt and we give', () => {
    const names = [
      ...['hd', 'sd', 'vd', 'xvd', 'ubd', 'fd'].flatMap((prefix) =>
        diskLetters().map((rest) => prefix + rest),
      ),
      ...Array.from({ length: 10_000 }, (_, i) => `disk${i}`),
    ];
    expect(new Set(names.map(diskPart)).size).toBe(names.length);
  });

  it('is below 2^17 for any name', () => {
    const target = fc.oneof(fc.stringMatching(/^[a-z][a-z0-9]{0,15}$/), fc.string());
    fc.assert(
      fc.property(target, (name) => {
        const part = diskPart(name);
        expect(Number.isInteger(part) && part >= 0 && part < 2 ** 17).toBe(true);
      }),
      { numRuns: 2000 },
    );
  });

  it.each(['vdA', 'vd', 'vd0', 'vdaaaa', 'vduaa', 'disk', 'disk00', 'disk10000', 'disk-1', 'sdä'])(
    'does not take %s for a numbered disk',
    (target) => {
      expect(diskPart(target)).toBeGreaterThanOrEqual(7 * 2 ** 14);
    },
  );
});

describe('inode', () => {
  it('is different for every disk, kind and number, and exact', () => {
    const part = fc.integer({ min: 0, max: 2 ** 17 - 1 });
    const kind = fc.constantFrom(INODE_DISK, INODE_DIRECTORY, INODE_CHUNK);
    const number = fc.oneof(
      fc.integer({ min: 0, max: 2 ** 32 - 1 }),
      fc.constantFrom(0, SUMS_NUMBER, 2 ** 32 - 1),
    );
    fc.assert(
      fc.property(part, kind, number, (p, k, n) => {
        const made = inode(p, k, n);
        expect(Number.isSafeInteger(made)).toBe(true);
        expect(made).toBeGreaterThan(2 ** 34 - 1);
        const high = Math.floor(made / 2 ** 32);
        expect([Math.floor(high / 4) - 1, high % 4, made % 2 ** 32]).toEqual([p, k, n]);
      }),
    );
  });

  it('keeps clear of the root and of the files at the top', () => {
    expect(ROOT_INODE).toBe(1);
    expect(inodeHigh(0, INODE_DISK)).toBeGreaterThan(0);
  });

  // Part of the stat contract.
  it('of chunk 5 of vda is what it always was', () => {
    expect(inode(diskPart('vda'), INODE_CHUNK, 5)).toBe(562975723225093);
  });
});
