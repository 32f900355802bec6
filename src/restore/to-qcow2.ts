import * as fs from 'node:fs';
import { failed, systemCode } from '../errors.js';
import { run } from '../host/exec.js';
import { timeFor } from '../host/time-for.js';
import type { Reporter } from '../report/reporter.js';

export type Compression = 'zlib' | 'zstd';

/** Even zlib on a slow processor gets this far in a second: the bound for a conversion that hangs. */
const SLOWEST_BYTES_PER_SECOND = 2 * 1024 * 1024;
const TICK_MS = 500;
const SECTOR_BYTES = 512;

export interface ConvertRequest {
  /** A complete raw image. */
  readonly raw: string;
  /** The qcow2 image to make; must not exist. */
  readonly qcow2: string;
  readonly compression: Compression | undefined;
  readonly reporter: Reporter;
  readonly signal: AbortSignal;
}

function allocated(file: string): number {
  return (fs.statSync(file, { throwIfNoEntry: false })?.blocks ?? 0) * SECTOR_BYTES;
}

/** qemu-img's own progress is for terminals; how much of the file there is tells as much. */
function watch({ raw, qcow2, reporter }: ConvertRequest): () => void {
  const total = allocated(raw);
  const task = reporter.progress('writing qcow2', total);
  let shown = 0;
  const advance = (to: number) => {
    if (to > shown) task.advance(to - shown);
    shown = Math.max(shown, to);
  };
  const timer = setInterval(() => advance(Math.min(allocated(qcow2), total)), TICK_MS);
  return () => {
    clearInterval(timer);
    advance(total);
    task.end();
  };
}

/**
 * Makes a qcow2 image of a raw one with `qemu-img convert`: QEMU writes its own format, and a compressed one can only be written
 * whole. Going through a raw image costs room for both, but needs neither FUSE nor a daemon, resumes like any restore, and every chunk
 * has been checked before QEMU sees it. On error nothing of the qcow2 image is left.
 */
export async function convertToQcow2(request: ConvertRequest): Promise<void> {
  const { raw, qcow2, compression, signal } = request;
  const compress = compression === undefined ? [] : ['-c', '-o', `compression_type=${compression}`];
  const args = ['convert', '-f', 'raw', '-O', 'qcow2', ...compress, raw, qcow2];
  const timeoutMs = timeFor(fs.statSync(raw).size, SLOWEST_BYTES_PER_SECOND);
  // qemu-img would make it readable for all; opened first, it keeps our mode.
  fs.closeSync(openNew(qcow2));
  const end = watch(request);
  try {
    await run('qemu-img', args, { timeoutMs, signal });
  } catch (error) {
    fs.rmSync(qcow2, { force: true });
    throw error;
  } finally {
    end();
  }
}

function openNew(file: string): number {
  fs.rmSync(file, { force: true });
  try {
    return fs.openSync(file, 'wx', 0o600);
  } catch (error) {
    throw failed(`${file} cannot be written: ${systemCode(error) ?? error}`, { cause: error });
  }
}
