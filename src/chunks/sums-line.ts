import { CHUNKS_PER_DIRECTORY } from './geometry.js';
import { chunkPath, HEX_TAILS, type LayoutKind, layoutOf } from './layout.js';

/** What decides how the lines of a disk's sums file look. */
export interface SumsShape {
  /** The disk's directory in the tree. */
  readonly directory: string;
  readonly layout: LayoutKind;
}

const HASH_DIGITS = 16;

/** Bytes in one line, whatever it says: so line i has a fixed place, and the file a size that is known before any hash. */
export function sumsLineLength({ directory, layout }: SumsShape): number {
  return HASH_DIGITS + 2 + directory.length + 1 + layoutOf(layout).pathLength + 1;
}

/** `<hash>  vda/0001a2/0001a2f3`, as `xxhsum -c` reads it. */
export function sumsLine({ directory, layout }: SumsShape, index: number, hash: string): string {
  return `${hash}  ${directory}/${chunkPath(layoutOf(layout), index)}\n`;
}

/** `#<hash> vda/0001a2/0001a2f3`: of a chunk of zeros that has no file. For `xxhsum -c` it is a comment. */
export function skippedSumsLine({ directory, layout }: SumsShape, index: number, hash: string): string {
  return `#${hash} ${directory}/${chunkPath(layoutOf(layout), index)}\n`;
}

const COMMENT = '#';
const SPACE = ' ';

/** Makes many lines of one disk: a reader of a large disk's sums waits for nothing else. */
export class SumsLines {
  readonly #line: Uint8Array;
  /** What `#line` says: most lines differ from the one before in little. */
  #directory = -1;
  #high = 0;
  #low = 0;
  #skipped = false;

  constructor(private readonly shape: SumsShape) {
    this.#line = new Uint8Array(sumsLineLength(shape));
  }

  /** The bytes of `sumsLine` or `skippedSumsLine`, with the two halves of the hash. Good until the next call. */
  line(index: number, high: number, low: number, skipped: boolean): Uint8Array {
    const line = this.#line;
    const directory = Math.floor(index / CHUNKS_PER_DIRECTORY);
    const another = directory !== this.#directory;
    if (another) {
      line.set(Buffer.from(sumsLine(this.shape, index, '0'.repeat(HASH_DIGITS))));
      this.#directory = directory;
    }
    if (another || high !== this.#high || low !== this.#low || skipped !== this.#skipped)
      this.#setHash(high, low, skipped);
    const tail = HEX_TAILS[index % CHUNKS_PER_DIRECTORY]!;
    line[line.length - 3] = tail;
    line[line.length - 2] = tail >>> 8;
    return line;
  }

  #setHash(high: number, low: number, skipped: boolean): void {
    const line = this.#line;
    // Before the path are 18 bytes: the hash and two spaces, or a sign, the hash and a space.
    const at = skipped ? 1 : 0;
    if (skipped) line[0] = COMMENT.charCodeAt(0);
    else line[HASH_DIGITS] = SPACE.charCodeAt(0);
    writeHex(line, at, high);
    writeHex(line, at + HASH_DIGITS / 2, low);
    this.#high = high;
    this.#low = low;
    this.#skipped = skipped;
  }
}

/** Eight lower-case digits of a 32-bit number. */
function writeHex(into: Uint8Array, at: number, value: number): void {
  for (let byte = 0; byte < 4; byte++) {
    const digits = HEX_TAILS[(value >>> (24 - 8 * byte)) & 0xff]!;
    into[at + 2 * byte] = digits;
    into[at + 2 * byte + 1] = digits >>> 8;
  }
}
