import { createRequire } from 'node:module';

/**
 * Hashes chunks with XXH64, seed 0. Writes the upper 32 bits of a hash to `into[at]` and the lower 32 bits to `into[at + 1]`, so that
 * four million hashes leave nothing for the garbage collector. Data is only read, and may lie in shared memory.
 */
export interface ChunkHasher {
  readonly implementation: 'native' | 'wasm';
  hash(data: Uint8Array, into: Uint32Array, at: number): void;
  /** A hash in pieces: begin, update with each piece, end. Beginning forgets one that has not ended. */
  begin(): void;
  update(piece: Uint8Array): void;
  end(into: Uint32Array, at: number): void;
}

/** What the packages have in common. */
interface Xxh64 {
  readonly whole: (data: Uint8Array) => bigint;
  readonly begin: () => { update(data: Uint8Array): unknown; digest(): bigint };
}

function hasher(implementation: ChunkHasher['implementation'], { whole, begin }: Xxh64): ChunkHasher {
  const halves = new DataView(new ArrayBuffer(8));
  const split = (hash: bigint, into: Uint32Array, at: number) => {
    halves.setBigUint64(0, hash);
    into[at] = halves.getUint32(0);
    into[at + 1] = halves.getUint32(4);
  };
  let begun = begin();
  return {
    implementation,
    hash: (data, into, at) => split(whole(data), into, at),
    begin: () => {
      begun = begin();
    },
    update: (piece) => {
      begun.update(piece);
    },
    end: (into, at) => split(begun.digest(), into, at),
  };
}

/** Not `import`: that parses a CommonJS package for its exports first, which takes each thread 50 ms of processor time. */
const load = createRequire(import.meta.url) as (name: '@node-rs/xxhash') => typeof import('@node-rs/xxhash');

/** Through the native addon; rejects when it cannot be loaded (another C library or processor, `--no-addons`). */
export async function nativeHasher(): Promise<ChunkHasher> {
  const { xxh64, Xxh64 } = load('@node-rs/xxhash');
  const state = new Xxh64();
  const begin = () => {
    state.reset();
    return state;
  };
  return hasher('native', { whole: (data) => xxh64(data), begin });
}

/** Through WebAssembly: runs everywhere, at about two thirds of the addon's speed. */
export async function wasmHasher(): Promise<ChunkHasher> {
  const { default: xxhash } = await import('xxhash-wasm');
  const { h64Raw, create64 } = await xxhash();
  return hasher('wasm', { whole: (data) => h64Raw(data), begin: () => create64() });
}

/** The fastest hasher that this host can load. Each worker thread makes its own. */
export async function createHasher(): Promise<ChunkHasher> {
  try {
    return await nativeHasher();
  } catch {
    return wasmHasher();
  }
}
