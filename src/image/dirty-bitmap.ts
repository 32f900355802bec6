import { failed, messageOf } from '../errors.js';
import { runLines } from '../host/exec.js';
import { nbdNode } from './block-node.js';
import { parseMapLine } from './map-line.js';

/** Of a whole bitmap; a disk of 8 TiB has 2^27 bits at most. */
const TIMEOUT_MS = 600_000;

/** 2^22 ranges take 64 MiB: with more of them, reading all of the disk is no slower. */
const MAX_RANGES = 2 ** 22;

/** An NBD export that tells what of it is dirty. */
export interface BitmapSource {
  readonly socket: string;
  readonly nbdExport: string;
  /** Name of the bitmap, as the server exports it. */
  readonly bitmap: string;
}

/** Bytes from `start` up to `end`. */
interface Range {
  readonly start: number;
  readonly end: number;
}

/** Gathers ranges of a disk of `size` bytes from the lines of qemu-img map; throws unless they cover it from end to end. */
export class DirtyRanges {
  readonly #ranges: { start: number; end: number }[] = [];
  #end = 0;

  constructor(private readonly size: number) {}

  /** With a bitmap in place of allocations QEMU shows what is dirty as a hole (nbd_client_co_block_status in its block/nbd.c). */
  add(text: string): void {
    const line = parseMapLine(text);
    if (line === undefined) return;
    if (line.start !== this.#end || line.length === 0)
      throw new Error(`an extent at ${line.start} follows one that ends at ${this.#end}`);
    this.#end += line.length;
    if (this.#end > this.size) throw new Error(`it ends at ${this.#end} instead of ${this.size}`);
    if (line.data) return;
    const last = this.#ranges.at(-1);
    if (last?.end === line.start) last.end = this.#end;
    else if (this.#ranges.push({ start: line.start, end: this.#end }) > MAX_RANGES)
      throw new Error(`it is in more than ${MAX_RANGES} pieces`);
  }

  finish(): readonly Range[] {
    if (this.#end === this.size) return this.#ranges;
    throw new Error(`it ends at ${this.#end} instead of ${this.size}`);
  }
}

/** What a dirty bitmap of an NBD export says was written, in order and apart from each other. `size`: of the disk, in bytes. */
export async function readDirtyBitmap(
  { socket, nbdExport, bitmap }: BitmapSource,
  size: number,
): Promise<readonly Range[]> {
  const node = { ...nbdNode(socket, nbdExport), 'x-dirty-bitmap': `qemu:dirty-bitmap:${bitmap}` };
  const filename = `json:${JSON.stringify({ driver: 'raw', 'read-only': true, file: node })}`;
  const ranges = new DirtyRanges(size);
  try {
    const args = ['map', '-f', 'raw', '--output=json', filename];
    for await (const line of runLines('qemu-img', args, { timeoutMs: TIMEOUT_MS })) ranges.add(line);
    return ranges.finish();
  } catch (error) {
    throw failed(`the dirty bitmap ${bitmap} of ${nbdExport} cannot be read: ${messageOf(error)}`, {
      cause: error,
    });
  }
}
