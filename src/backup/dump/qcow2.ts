import * as fs from 'node:fs';
import { promisify } from 'node:util';
import { run } from '../../host/exec.js';
import { timeFor } from '../../host/time-for.js';
import { chainNode } from '../../image/block-node.js';
import type { ImageChain } from '../../image/image-layer.js';
import { watchGrowth } from '../../image/watch-growth.js';
import type { Reporter } from '../../report/reporter.js';

const fsync = promisify(fs.fsync);

/** A slow disk gets this far in a second: the bound for a conversion that hangs. */
const SLOWEST_BYTES_PER_SECOND = 2 * 1024 * 1024;

export interface ConvertRequest {
  readonly target: string;
  /** The frozen image and what is below it. */
  readonly layers: ImageChain;
  /** Bytes that have to be read. */
  readonly dataBytes: number;
  /** The qcow2 image; an empty file of the right owner and mode. */
  readonly file: string;
  readonly reporter: Reporter;
  readonly signal?: AbortSignal | undefined;
}

/** Makes a qcow2 image of a frozen one, without its backing files, and syncs it. */
export async function convertToQcow2(request: ConvertRequest): Promise<void> {
  const { target, layers, file, dataBytes, reporter, signal } = request;
  const source = `json:${JSON.stringify(chainNode(layers))}`;
  const timeoutMs = timeFor(dataBytes, SLOWEST_BYTES_PER_SECOND);
  const end = watchGrowth(file, { label: `converting ${target} to qcow2`, bytes: dataBytes, reporter });
  try {
    await run('qemu-img', ['convert', '-f', layers[0].format, '-O', 'qcow2', source, file], {
      timeoutMs,
      signal,
    });
  } finally {
    end();
  }
  const fd = fs.openSync(file, 'r');
  try {
    await fsync(fd);
  } finally {
    fs.closeSync(fd);
  }
}
