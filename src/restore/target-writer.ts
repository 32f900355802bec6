import * as fs from 'node:fs';
import { promisify } from 'node:util';
import { type ChunkmountError, failed, messageOf, systemCode } from '../errors.js';
import { isDiskFull } from '../host/durable.js';
import { pageBuffer } from '../host/page-buffer.js';
import { writeFullyAt } from './full-io.js';

/** What O_DIRECT asks of addresses, positions and lengths: the logical block size, which is 512 or 4096. See open(2). */
const DIRECT_ALIGNMENT = 4096;

/** So much in one write keeps a disk busy while the thread reads and hashes the next chunks. */
const BATCH_BYTES = 4 * 1024 * 1024;

/** A file or block device that threads write to. Descriptors are those of the whole process. */
export interface WritableTarget {
  /** Open for reading and writing. */
  readonly fd: number;
  /** The same, open with O_DIRECT; undefined if that cannot be, or is not wanted. */
  readonly directFd: number | undefined;
  /** What to call it in errors. */
  readonly name: string;
}

/**
 * Opens the file behind a descriptor once more, to write past the page cache: a restore would only drive out what running VMs
 * need of it, and finding room in it can take longer than the disk does. Undefined where the file system knows no O_DIRECT.
 */
export function openDirect(fd: number): number | undefined {
  try {
    return fs.openSync(`/proc/self/fd/${fd}`, fs.constants.O_WRONLY | fs.constants.O_DIRECT);
  } catch {
    return undefined;
  }
}

function notWritten(what: string, error: unknown): ChunkmountError {
  return failed(`${what}: ${messageOf(error)}`, {
    hint: isDiskFull(error)
      ? 'make room and run the same command again: what has been restored is kept'
      : 'look at the storage that it is on (dmesg)',
    cause: error,
  });
}

const fsync = promisify(fs.fsync);

/** Waits until all that was written to `name` is on disk. Some file systems only then find out that there is no room for it. */
export async function syncTarget(fd: number, name: string): Promise<void> {
  try {
    await fsync(fd);
  } catch (error) {
    throw notWritten(`${name} cannot be written`, error);
  }
}

/** Writes chunks to their places for one thread; neighbours together. Nothing is certain to be written before `flush`. */
export class TargetWriter {
  readonly #batch: Buffer;
  #directFd: number | undefined;
  /** Where in the target the batch belongs, and how much is in it. In bytes. */
  #position = 0;
  #length = 0;

  constructor(
    private readonly target: WritableTarget,
    private readonly chunkSize: number,
  ) {
    this.#batch = pageBuffer(Math.max(BATCH_BYTES, chunkSize));
    this.#directFd = target.directFd;
  }

  /** Where to put the content of chunk `index`, which `add` then takes; until then it may be asked for again. */
  place(index: number): Buffer {
    const position = index * this.chunkSize;
    const fits = this.#length + this.chunkSize <= this.#batch.byteLength;
    if (!fits || position !== this.#position + this.#length) this.flush();
    if (this.#length === 0) this.#position = position;
    return this.#batch.subarray(this.#length, this.#length + this.chunkSize);
  }

  /** The first `length` bytes of the place that was given last are to be written. */
  add(length: number): void {
    this.#length += length;
  }

  /** Writes what there is. Throws what the user can do about it. */
  flush(): void {
    try {
      this.#write();
    } catch (error) {
      throw notWritten(`${this.target.name} cannot be written at ${this.#position}`, error);
    }
    this.#length = 0;
  }

  #write(): void {
    if (this.#directFd !== undefined && this.#isAligned()) {
      try {
        writeFullyAt(this.#directFd, this.#batch, this.#length, this.#position);
        return;
      } catch (error) {
        if (systemCode(error) !== 'EINVAL') throw error;
        // A disk with larger blocks, or a file system that opens with O_DIRECT and cannot do it.
        this.#directFd = undefined;
      }
    }
    writeFullyAt(this.target.fd, this.#batch, this.#length, this.#position);
  }

  /** The end of a disk need not be. */
  #isAligned(): boolean {
    return this.#position % DIRECT_ALIGNMENT === 0 && this.#length % DIRECT_ALIGNMENT === 0;
  }
}
