import { failed } from '../errors.js';
import { ExtentMap, extentMapBytes, ZERO_SOURCE } from './extent-map.js';

const FIRST_CAPACITY = 1024;

/** 2^27 extents are 2.3 GB of map; QEMU's worst cases known are some millions. */
const MAX_EXTENTS = 2 ** 27;

function grown(array: Float64Array, capacity: number): Float64Array<ArrayBuffer> {
  const larger = new Float64Array(capacity);
  larger.set(array);
  return larger;
}

/** Makes an ExtentMap from extents given in order; neighbours that continue each other become one. */
export class ExtentMapBuilder {
  #starts = new Float64Array(FIRST_CAPACITY);
  #offsets = new Float64Array(FIRST_CAPACITY);
  #sources = new Uint8Array(FIRST_CAPACITY);
  #count = 0;
  #end = 0;

  /** Where the next extent begins. */
  get end(): number {
    return this.#end;
  }

  /** Appends `length` zero bytes. */
  addZeros(length: number): void {
    this.#add(length, ZERO_SOURCE, 0);
  }

  /** Appends `length` bytes that are at `offset` of source number `source` (below ZERO_SOURCE). */
  addData(length: number, source: number, offset: number): void {
    if (!(Number.isInteger(source) && source >= 0 && source < ZERO_SOURCE))
      throw new RangeError(`no source number: ${source}`);
    if (!(Number.isSafeInteger(offset) && offset >= 0)) throw new RangeError(`no file offset: ${offset}`);
    this.#add(length, source, offset);
  }

  finish(): ExtentMap {
    const count = this.#count;
    const buffer = new SharedArrayBuffer(extentMapBytes(count));
    const starts = new Float64Array(buffer, 0, count + 1);
    starts.set(this.#starts.subarray(0, count));
    starts[count] = this.#end;
    new Float64Array(buffer, (count + 1) * 8, count).set(this.#offsets.subarray(0, count));
    new Uint8Array(buffer, (2 * count + 1) * 8, count).set(this.#sources.subarray(0, count));
    return new ExtentMap({ buffer, count });
  }

  #add(length: number, source: number, offset: number): void {
    if (!(Number.isSafeInteger(length) && length >= 0)) throw new RangeError(`no length: ${length}`);
    if (!Number.isSafeInteger(this.#end + length)) throw new RangeError(`a disk of more than 2^53 bytes`);
    if (length === 0) return;
    if (!this.#continues(source, offset)) this.#push(source, offset);
    this.#end += length;
  }

  #continues(source: number, offset: number): boolean {
    const last = this.#count - 1;
    if (last < 0 || this.#sources[last] !== source) return false;
    return source === ZERO_SOURCE || this.#offsets[last]! + (this.#end - this.#starts[last]!) === offset;
  }

  #push(source: number, offset: number): void {
    const count = this.#count;
    if (count === MAX_EXTENTS)
      throw failed(`the image is in more than ${MAX_EXTENTS} pieces`, {
        hint: 'defragment it: qemu-img convert',
      });
    if (count === this.#starts.length) this.#grow(count * 2);
    this.#starts[count] = this.#end;
    this.#offsets[count] = offset;
    this.#sources[count] = source;
    this.#count = count + 1;
  }

  #grow(capacity: number): void {
    this.#starts = grown(this.#starts, capacity);
    this.#offsets = grown(this.#offsets, capacity);
    const sources = new Uint8Array(capacity);
    sources.set(this.#sources);
    this.#sources = sources;
  }
}
