import * as fs from 'node:fs';
import { failed, systemCode } from '../errors.js';
import { run } from '../host/exec.js';
import { timeFor } from '../host/time-for.js';
import { watchGrowth } from '../image/watch-growth.js';
import type { Reporter } from '../report/reporter.js';

export type Compression = 'zlib' | 'zstd';

/** Even zlib on a slow processor gets this far in a second: the bound for a conversion that hangs. */
const SLOWEST_BYTES_PER_SECOND = 2 * 1024 * 1024;
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

/**
 * Makes a qcow2 image of a raw one with `qemu-img convert`: QEMU writes its own format, and a compressed one can only be written
 * whole. Going through a raw image costs room for both, but needs neither FUSE nor a daemon, resumes like any restore, and every chunk
 * has been checked before QEMU sees it. On error nothing of the qcow2 image is left.
 */
export async function convertToQcow2(request: ConvertRequest): Promise<void> {
  const { raw, qcow2, compression, reporter, signal } = request;
  const compress = compression === undefined ? [] : ['-c', '-o', `compression_type=${compression}`];
  const args = ['convert', '-f', 'raw', '-O', 'qcow2', ...compress, raw, qcow2];
  const { size, blocks } = fs.statSync(raw);
  const timeoutMs = timeFor(size, SLOWEST_BYTES_PER_SECOND);
  // qemu-img would make it readable for all; opened first, it keeps our mode.
  fs.closeSync(openNew(qcow2));
  const end = watchGrowth(qcow2, { label: 'writing qcow2', bytes: blocks * SECTOR_BYTES, reporter });
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
