/**
 * Hashes one chunk with XXH64, seed 0. Writes the upper 32 bits of the hash to `into[at]` and the lower 32 bits to
 * `into[at + 1]`, so that four million hashes leave nothing for the garbage collector. `data` is only read, and may lie in shared memory.
 */
export interface ChunkHasher {
  readonly implementation: 'native' | 'wasm';
  hash(data: Uint8Array, into: Uint32Array, at: number): void;
}

function hasher(
  implementation: ChunkHasher['implementation'],
  xxh64: (data: Uint8Array) => bigint,
): ChunkHasher {
  const halves = new DataView(new ArrayBuffer(8));
  return {
    implementation,
    hash(data, into, at) {
      halves.setBigUint64(0, xxh64(data));
      into[at] = halves.getUint32(0);
      into[at + 1] = halves.getUint32(4);
    },
  };
}

/** Through the native addon; rejects when it cannot be loaded (another C library or processor, `--no-addons`). */
export async function nativeHasher(): Promise<ChunkHasher> {
  const { xxh64 } = await import('@node-rs/xxhash');
  return hasher('native', (data) => xxh64(data));
}

/** Through WebAssembly: runs everywhere, at about two thirds of the addon's speed. */
export async function wasmHasher(): Promise<ChunkHasher> {
  const { default: xxhash } = await import('xxhash-wasm');
  const { h64Raw } = await xxhash();
  return hasher('wasm', (data) => h64Raw(data));
}

/** The fastest hasher that this host can load. Each worker thread makes its own. */
export async function createHasher(): Promise<ChunkHasher> {
  try {
    return await nativeHasher();
  } catch {
    return wasmHasher();
  }
}
