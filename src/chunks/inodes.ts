/**
 * Inode numbers are arithmetic, so that a file has the same number in every session and whatever else is in the tree:
 *
 *     bits 50..34  1 + disk part (from the target's name alone); 0 for the files at the top of the tree
 *     bits 33..32  what it is
 *     bits 31..0   number of the chunk; of a directory: its rank in bits 31..24 (see layout.ts), its number below
 *
 * They stay below 2^53, so a JavaScript number holds them exactly, and FUSE's root is 1 as it has to be.
 */

export const ROOT_INODE = 1;

/** What an inode number's bits 33..32 say. */
export const INODE_DISK = 0;
export const INODE_DIRECTORY = 1;
export const INODE_CHUNK = 2;

/** Number of the sums file among the INODE_DISK numbers of a disk; the disk's directory is 0. */
export const SUMS_NUMBER = 1;

const PREFIXES = ['hd', 'sd', 'vd', 'xvd', 'ubd', 'fd', 'disk'];
const PER_PREFIX = 2 ** 14;
const UNKNOWN_PREFIX = 7;

/** a → 0, z → 25, aa → 26, as libvirt counts its disks. */
function lettersToNumber(letters: string): number {
  let number = 0;
  for (const letter of letters) number = number * 26 + (letter.charCodeAt(0) - 96);
  return number - 1;
}

/** FNV-1a, 32 bits; see RFC 9923. */
function fnv1a(text: string): number {
  let hash = 0x811c9dc5;
  for (let i = 0; i < text.length; i++) hash = Math.imul(hash ^ text.charCodeAt(i), 0x01000193);
  return hash >>> 0;
}

/**
 * A number below 2^17 for a target, made from its name alone. Names as libvirt and we give them (`vda`, `sdaa`, `disk3`)
 * never collide; others are hashed, and two disks of one tree that collide are refused by whoever builds the tree.
 */
export function diskPart(target: string): number {
  for (const [position, prefix] of PREFIXES.entries()) {
    if (!target.startsWith(prefix)) continue;
    const rest = target.slice(prefix.length);
    const digits = prefix === 'disk';
    if (digits ? !/^(0|[1-9][0-9]{0,3})$/.test(rest) : !/^[a-z]{1,2}$|^[a-t][a-z]{2}$/.test(rest)) continue;
    return position * PER_PREFIX + (digits ? Number(rest) : lettersToNumber(rest));
  }
  return UNKNOWN_PREFIX * PER_PREFIX + (fnv1a(target) % PER_PREFIX);
}

/** Upper 32 bits of the inode numbers of one kind of a disk. */
export function inodeHigh(part: number, kind: number): number {
  return (part + 1) * 4 + kind;
}

const NUMBERS_PER_RANK = 2 ** 24;

/** A directory's number among the INODE_DIRECTORY ones of its disk. */
export function directoryInodeNumber(rank: number, number: number): number {
  return rank * NUMBERS_PER_RANK + number;
}

export function rankOf(directoryInodeNumber: number): number {
  return Math.floor(directoryInodeNumber / NUMBERS_PER_RANK);
}

export function numberInRank(directoryInodeNumber: number): number {
  return directoryInodeNumber % NUMBERS_PER_RANK;
}

export function inode(part: number, kind: number, number: number): number {
  return inodeHigh(part, kind) * 2 ** 32 + number;
}
