import { type ChunkmountError, failed } from '../errors.js';
import type { ExtentMap } from './extent-map.js';
import { ZERO_SOURCE } from './extent-map.js';
import { ExtentMapBuilder } from './extent-map-builder.js';
import type { ImageChain, ImageFile, ImageLayer } from './image-layer.js';
import type { MapLine } from './map-line.js';
import type { ImageSource } from './sources.js';

/** QEMU counts disks in these, and rounds an odd-sized raw file up. */
const SECTOR_SIZE = 512;

export function roundToSector(bytes: number): number {
  return Math.ceil(bytes / SECTOR_SIZE) * SECTOR_SIZE;
}

/**
 * The file that a data extent of this layer with an offset lies in; undefined if offsets cannot be trusted to be in one known
 * file (an NBD export has none, a VMDK many, and others were not looked into).
 */
function directFile(layer: ImageLayer): ImageFile | undefined {
  if (layer.nbdExport !== undefined || (layer.format !== 'raw' && layer.format !== 'qcow2')) return undefined;
  return layer.dataFile ?? layer;
}

/** Size of the disk that the chain has to have; undefined when only QEMU can say (raw block devices). */
function expectedSize([top]: ImageChain): number | undefined {
  return top.virtualSize ?? (top.device ? undefined : roundToSector(top.fileSize));
}

/**
 * Turns the lines of `qemu-img map` for a chain into an extent map, by the ordered rule: zero → zeros; not data → zeros; data with
 * an offset in a file that is known → that file; all else → the raw view. Sources get their numbers as they appear.
 */
export class LayeredMap {
  readonly #chain: ImageChain;
  readonly #builder = new ExtentMapBuilder();
  readonly #sources: ImageSource[] = [];
  /** Depth → source number of its direct file. */
  readonly #numbers = new Map<number, number>();
  #view: number | undefined;

  constructor(chain: ImageChain) {
    this.#chain = chain;
  }

  add(line: MapLine): void {
    if (line.start !== this.#builder.end)
      throw this.#inconsistent(`an extent at ${line.start} follows one that ends at ${this.#builder.end}`);
    if (!Number.isSafeInteger(line.start + line.length))
      throw this.#inconsistent(`it is larger than 2^53 bytes`);
    if (line.zero || !line.data) {
      this.#builder.addZeros(line.length);
      return;
    }
    const layer = this.#chain[line.depth];
    if (layer === undefined) throw this.#inconsistent(`layer ${line.depth} is not there`);
    const file = directFile(layer);
    if (file === undefined || line.offset === undefined)
      this.#builder.addData(line.length, this.#viewNumber(), line.start);
    else this.#addDirect(line.length, line.depth, file, line.offset);
  }

  /** To be called after the last line. Throws when the lines do not cover the disk exactly. */
  finish(): { extents: ExtentMap; sources: readonly ImageSource[] } {
    const expected = expectedSize(this.#chain);
    if (expected !== undefined && expected !== this.#builder.end) {
      throw this.#inconsistent(`it ends at ${this.#builder.end} instead of ${expected}`);
    }
    return { extents: this.#builder.finish(), sources: this.#sources };
  }

  #addDirect(length: number, depth: number, file: ImageFile, offset: number): void {
    // QEMU would read zeros there: that is what a copy that was cut off looks like, and no backup of it may pass as good.
    if (!file.device && offset + length > roundToSector(file.fileSize)) {
      throw failed(
        `the image file ${file.path} is cut off: it ends at ${file.fileSize}, and data are recorded up to ${offset + length}`,
        {
          hint: `check it: qemu-img check ${this.#chain[0].path}; if that is clean, something is writing to it`,
          details: { path: file.path, size: file.fileSize, offset, length },
        },
      );
    }
    let number = this.#numbers.get(depth);
    if (number === undefined) {
      number = this.#newSource({ kind: 'file', path: file.path, size: file.fileSize });
      this.#numbers.set(depth, number);
    }
    this.#builder.addData(length, number, offset);
  }

  #viewNumber(): number {
    this.#view ??= this.#newSource({ kind: 'view' });
    return this.#view;
  }

  #newSource(source: ImageSource): number {
    if (this.#sources.length === ZERO_SOURCE) throw new RangeError('too many sources');
    return this.#sources.push(source) - 1;
  }

  #inconsistent(why: string): ChunkmountError {
    const { path } = this.#chain[0];
    return failed(`the extents of the image ${path} do not add up: ${why}`, {
      hint: 'make sure that nothing writes to it, and begin again',
      details: { path },
    });
  }
}
