import { setImmediate } from 'node:timers/promises';
import { ChunkmountError, failed, systemCode } from '../errors.js';
import { isDiskFull } from '../host/durable.js';
import { pageBuffer } from '../host/page-buffer.js';
import type { ChunkSource } from './chunk-source.js';
import { type ChunkDamage, DamageError } from './damage.js';
import { openSource } from './open-source.js';
import { interrupted, type RestoreContext } from './restore-request.js';
import type { Tree } from './tree.js';
import { MAX_LISTED } from './worker-pool.js';

export interface StreamResult {
  /** In order of chunk, at most MAX_LISTED. */
  readonly damage: readonly ChunkDamage[];
  readonly damageCount: number;
}

/** So often the event loop runs, or no signal would arrive: Node.js writes to files and devices synchronously. */
const BREATHE_BYTES = 4 * 1024 * 1024;

/**
 * Resolves when the stream has taken the bytes, so that their buffer can be used again. Rejects when `signal` is aborted meanwhile:
 * whoever reads a pipe may have stopped, and never go on.
 */
function write(stream: NodeJS.WritableStream, data: Uint8Array, signal: AbortSignal): Promise<void> {
  return new Promise((resolve, reject) => {
    const stop = () => reject(signal.reason);
    signal.addEventListener('abort', stop, { once: true });
    stream.write(data, (error) => {
      signal.removeEventListener('abort', stop);
      if (error == null) resolve();
      else reject(error);
    });
  });
}

/**
 * Writes a disk of a tree, in order and whole, to a stream. Every chunk is checked before it is written. A damaged one ends it with
 * DamageError, when all before it has been written; with `keepGoing` zeros take its place.
 */
export async function restoreToStream(
  tree: Tree,
  disk: string,
  stream: NodeJS.WritableStream,
  options: RestoreContext & { readonly keepGoing: boolean },
): Promise<StreamResult> {
  const source = await openSource(tree, disk, { evenWithoutSums: options.keepGoing });
  const task = options.reporter.progress(`restoring ${disk}`, source.disk.size);
  // The error is the write's that failed; without a listener it would end the process, too.
  const ignore = () => {};
  stream.on('error', ignore);
  try {
    return await copy(source, stream, options, (bytes) => task.advance(bytes));
  } catch (error) {
    if (error instanceof ChunkmountError) throw error;
    if (options.signal.aborted) {
      throw interrupted(disk, 'what has been written is the beginning of the disk');
    }
    throw outputFailed(error);
  } finally {
    stream.off('error', ignore);
    task.end();
    source.close();
  }
}

function outputFailed(error: unknown): ChunkmountError {
  if (systemCode(error) === 'EPIPE') {
    return failed('whoever reads the output has closed it before the end of the disk', {
      hint: 'what was written is the beginning of the disk; see why that program ended, unless it wanted no more',
      cause: error,
    });
  }
  return failed(`the output cannot be written: ${systemCode(error) ?? error}`, {
    hint: isDiskFull(error) ? 'make room where it goes' : 'look at the storage that it goes to (dmesg)',
    cause: error,
  });
}

async function copy(
  source: ChunkSource,
  stream: NodeJS.WritableStream,
  { keepGoing, signal }: RestoreContext & { readonly keepGoing: boolean },
  advance: (bytes: number) => void,
): Promise<StreamResult> {
  const damage: ChunkDamage[] = [];
  let damageCount = 0;
  const buffer = pageBuffer(source.disk.chunkSize);
  let unheard = 0;
  for (let index = 0; index < source.disk.chunkCount; index++) {
    signal.throwIfAborted();
    const { length, error } = readOrZeros(source, index, buffer);
    if (error !== undefined) {
      if (!keepGoing) throw error;
      damageCount++;
      if (damage.length < MAX_LISTED) damage.push(error.damage);
    }
    await write(stream, buffer.subarray(0, length), signal);
    advance(length);
    unheard += length;
    if (unheard >= BREATHE_BYTES) {
      await setImmediate();
      unheard = 0;
    }
  }
  return { damage, damageCount };
}

/** Reads and checks a chunk. If it is damaged, there are zeros in the buffer, or what could not be checked. */
function readOrZeros(
  source: ChunkSource,
  index: number,
  buffer: Buffer,
): { length: number; error?: DamageError } {
  const length = source.lengthOf(index);
  try {
    source.read(index, buffer);
    return { length };
  } catch (error) {
    if (!(error instanceof DamageError)) throw error;
    if (error.damage.kind !== 'unverified') buffer.fill(0, 0, length);
    return { length, error };
  }
}
