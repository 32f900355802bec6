/** Of WebAssembly, whose types TypeScript has only among those of browsers. */
const WASM_PAGE_BYTES = 64 * 1024;
declare const WebAssembly: {
  readonly Memory: new (size: { readonly initial: number }) => { readonly buffer: ArrayBuffer };
};

/** Of memory, and of the page cache. */
const PAGE_BYTES = 4096;

/**
 * A buffer of `length` zero bytes whose byte at `aligned` is the first of a page: only the memory of WebAssembly begins at one.
 * O_DIRECT needs that, and large reads are several times as fast: a Buffer's own memory begins 16 bytes behind a page border, and AMD's
 * processors copy at a quarter of their speed to where a target is, within its page, 1 to 31 bytes further than its source is.
 */
export function pageBuffer(length: number, aligned = 0): Buffer {
  const offset = (PAGE_BYTES - (aligned % PAGE_BYTES)) % PAGE_BYTES;
  const { buffer } = new WebAssembly.Memory({ initial: Math.ceil((offset + length) / WASM_PAGE_BYTES) });
  return Buffer.from(buffer, offset, length);
}
