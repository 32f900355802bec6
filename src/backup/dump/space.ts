import * as fs from 'node:fs';
import * as path from 'node:path';
import { type ChunkmountError, failed } from '../../errors.js';

/** What a running VM may write in the second between two looks, and while its disks are given back. */
const RESERVE_BYTES = 512 * 1024 * 1024;
const INTERVAL_MS = 500;

/** The directory, or what is above it as long as it does not exist. */
function existing(directory: string): string {
  return fs.existsSync(directory) ? directory : path.dirname(directory);
}

function freeBytes(directory: string): number {
  const { bavail, bsize } = fs.statfsSync(existing(directory));
  return bavail * bsize;
}

function mebibytes(bytes: number): string {
  return `${Math.ceil(bytes / 1024 / 1024)} MiB`;
}

/**
 * Room for a dump. Where a VM's disks grow while it is written, on the same file system, some has to be left for them: when that
 * is full the VM stops.
 */
export class DumpSpace {
  readonly #reserve: number;

  /** `growing`: directories of files that grow with what VMs write. */
  constructor(
    readonly directory: string,
    growing: readonly string[],
  ) {
    const device = fs.statSync(existing(directory)).dev;
    const shared = growing.some((one) => fs.statSync(one, { throwIfNoEntry: false })?.dev === device);
    this.#reserve = shared ? RESERVE_BYTES : 0;
  }

  /** Throws unless there is room for `needed` bytes. */
  check(needed: number, what: string): void {
    const free = freeBytes(this.directory);
    if (needed + this.#reserve > free) throw this.#tooLittle(`for ${what}`, needed, free);
  }

  /** A sentence if there is less than `needed`. */
  doubt(needed: number): string | undefined {
    const free = freeBytes(this.directory);
    if (needed + this.#reserve <= free) return undefined;
    return `${this.directory} has ${mebibytes(free)} left, and ${mebibytes(needed)} are to be compressed into it`;
  }

  /** Does `work` with a signal that is aborted with `signal`, and when it is time to leave the rest of the room to VMs. */
  async guard<T>(signal: AbortSignal | undefined, work: (signal: AbortSignal) => Promise<T>): Promise<T> {
    const controller = new AbortController();
    const pass = () => controller.abort(signal?.reason);
    if (signal?.aborted === true) pass();
    signal?.addEventListener('abort', pass);
    const look = () => {
      const free = freeBytes(this.directory);
      if (free < this.#reserve) controller.abort(this.#tooLittle('to go on', 0, free));
    };
    const timer = this.#reserve > 0 ? setInterval(look, INTERVAL_MS) : undefined;
    try {
      return await work(controller.signal);
    } catch (error) {
      // A program that was stopped does not know why.
      throw controller.signal.aborted ? controller.signal.reason : error;
    } finally {
      clearInterval(timer);
      signal?.removeEventListener('abort', pass);
    }
  }

  #tooLittle(what: string, needed: number, free: number): ChunkmountError {
    const kept =
      this.#reserve === 0 ? '' : `, and ${mebibytes(this.#reserve)} more for what the VM writes meanwhile`;
    return failed(
      `there is no room ${what} in ${this.directory}: ${mebibytes(needed)} are needed${kept}, ${mebibytes(free)} left`,
      {
        hint: 'make room, give another --backupdir, or --compress it',
        details: { directory: this.directory, needed, reserve: this.#reserve, free },
      },
    );
  }
}
