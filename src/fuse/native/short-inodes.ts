import { INODE_CHUNK, INODE_DIRECTORY, numberInRank, rankOf } from '../../chunks/inodes.js';
import { usage } from '../../errors.js';
import type { TreeDisk } from '../chunk-tree.js';
import type { InodeNumbers } from './inode-numbers.js';

/**
 * fuse-native passes on 32 bits of an inode number, ours have 51. The short ones are arithmetic too:
 *
 *     bits 31..27  0 for the files at the top of the tree, else 1 + the disk's slot
 *     bits 26..0   0 the disk's directory, 1 its sums, from 2 its chunk directories, from 2^19 its chunks; just below those
 *                  the directories that hold directories, for which MAX_CHUNKS leaves room
 *
 * A slot comes from the target's name alone, unless two disks of one tree want the same: then the second one, in
 * the order of inode numbers, takes the next that is free.
 */
const SLOT_BITS = 27;
const SLOTS = 31;
const FIRST_DIRECTORY = 2;
const FIRST_CHUNK = 2 ** 19;
/** 2^17 fewer than there is room for: so 2^9 numbers are left below FIRST_CHUNK, and libfuse takes 2^32 - 1 for an unknown one. */
const MAX_CHUNKS = 2 ** SLOT_BITS - FIRST_CHUNK - 2 ** 17;
/** Where the directories of each rank begin; so many chunks have at most 2^11 of rank 1, 8 of rank 2, and one of the others. */
const FIRST_OF_RANK = [
  FIRST_DIRECTORY,
  ...[0, 2 ** 11, 2 ** 11 + 8, 2 ** 11 + 9, 2 ** 11 + 10, 2 ** 11 + 11].map(
    (offset) => FIRST_CHUNK - 2 ** 11 - 12 + offset,
  ),
];

/** Bits of a part that number the disks of one prefix: see diskPart in chunks/inodes.ts. */
const PART_NUMBER_BITS = 14;
/** Slots between one prefix and the next: up to this many disks of each prefix never collide. */
const SLOTS_PER_PREFIX = 4;

function wantedSlot(part: number): number {
  const prefix = part >>> PART_NUMBER_BITS;
  const number = part & (2 ** PART_NUMBER_BITS - 1);
  return (prefix * SLOTS_PER_PREFIX + number) % SLOTS;
}

export class ShortInodes implements InodeNumbers {
  /** By disk part. */
  readonly #slots = new Map<number, number>();

  /** Throws a usage error for more disks or chunks than there are short numbers. */
  constructor(disks: readonly Pick<TreeDisk, 'target' | 'part' | 'geometry'>[]) {
    if (disks.length > SLOTS) {
      throw usage(`${disks.length} disks are too many for the native transport, which takes ${SLOTS}`, {
        hint: 'leave some out with --exclude, or run as root with --transport=kernel',
      });
    }
    const taken = new Set<number>();
    for (const { target, part, geometry } of [...disks].sort((a, b) => a.part - b.part)) {
      if (geometry.chunkCount > MAX_CHUNKS) {
        throw usage(`disk ${target} has too many chunks for the native transport: ${geometry.chunkCount}`, {
          hint: 'give a larger --chunk-size, or run as root with --transport=kernel',
        });
      }
      let slot = wantedSlot(part);
      while (taken.has(slot)) slot = (slot + 1) % SLOTS;
      taken.add(slot);
      this.#slots.set(part, slot);
    }
  }

  /** The short number of an inode of this tree. */
  of(inode: number): number {
    const high = Math.floor(inode / 2 ** 32);
    const number = inode - high * 2 ** 32;
    if (high === 0) return number;
    const kind = high % 4;
    const base = (this.#slots.get(Math.floor(high / 4) - 1)! + 1) * 2 ** SLOT_BITS;
    if (kind === INODE_CHUNK) return base + FIRST_CHUNK + number;
    if (kind === INODE_DIRECTORY) return base + FIRST_OF_RANK[rankOf(number)]! + numberInRank(number);
    return base + number;
  }
}
