import type { ReadOnlyFilesystem } from './filesystem.js';
import { COUNTER_NAMES } from './handlers.js';

export type TransportKind = 'kernel' | 'native';

/** What `list --json` shows of a session's traffic. */
export type Counters = Readonly<Record<(typeof COUNTER_NAMES)[number], number>>;

/** How each serving thread makes its own instance of one file system. */
export interface FilesystemSource {
  /** URL of a module that exports `createFilesystem`, a FilesystemFactory. */
  readonly factory: string;
  /** For the factory: plain data and shared memory, the same for every thread. */
  readonly data: unknown;
}

export type FilesystemFactory = (data: unknown) => Promise<ReadOnlyFilesystem>;

/** Loads the module of a FilesystemSource. */
export async function loadFactory(factory: string): Promise<FilesystemFactory> {
  return ((await import(factory)) as { createFilesystem: FilesystemFactory }).createFilesystem;
}

export interface ServeOptions {
  readonly filesystem: FilesystemSource;
  /** Absolute, an empty directory. */
  readonly mountpoint: string;
  /** How the mount calls itself in mountinfo; says whose it is. */
  readonly source: string;
  readonly directIo: boolean;
  /** Let other users in (the modes of the files still count). */
  readonly allowOther: boolean;
}

/**
 * A tree being served in this process. `connected` resolves when the mount answers; `ended` when it is gone for good,
 * whoever unmounted it; both reject when serving fails. After `ended` nothing reads the tree any more.
 */
export interface Server {
  readonly connected: Promise<void>;
  readonly ended: Promise<void>;
  counters(): Counters;
}

/** Sums up the counters of all threads. */
export function sumCounters(threads: readonly Float64Array[]): Counters {
  const sum = (position: number) => threads.reduce((total, counters) => total + counters[position]!, 0);
  return Object.fromEntries(COUNTER_NAMES.map((name, position) => [name, sum(position)])) as Counters;
}

export function createCounters(): Float64Array {
  return new Float64Array(new SharedArrayBuffer(COUNTER_NAMES.length * Float64Array.BYTES_PER_ELEMENT));
}
