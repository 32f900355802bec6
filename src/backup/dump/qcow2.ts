import * as fs from 'node:fs';
import { promisify } from 'node:util';
import { run } from '../../host/exec.js';
import { chainNode } from '../../image/block-node.js';
import type { ImageChain } from '../../image/image-layer.js';
import type { Reporter } from '../../report/reporter.js';

const fsync = promisify(fs.fsync);

/** A slow disk gets this far in a second: the bound for a conversion that hangs. */
const SLOWEST_BYTES_PER_SECOND = 2 * 1024 * 1024;
const LEAST_TIMEOUT_MS = 600_000;
const TICK_MS = 500;
const SECTOR_BYTES = 512;

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

/** qemu-img's own progress is for terminals; how much of the file there is tells as much. */
function watch({ target, file, dataBytes, reporter }: ConvertRequest): () => void {
  const task = reporter.progress(`converting ${target} to qcow2`, dataBytes);
  let shown = 0;
  const show = () => {
    const { blocks } = fs.statSync(file, { throwIfNoEntry: false }) ?? { blocks: 0 };
    const done = Math.min(blocks * SECTOR_BYTES, dataBytes);
    if (done > shown) task.advance(done - shown);
    shown = Math.max(shown, done);
  };
  const timer = setInterval(show, TICK_MS);
  return () => {
    clearInterval(timer);
    show();
    task.end();
  };
}

/** Makes a qcow2 image of a frozen one, without its backing files, and syncs it. */
export async function convertToQcow2(request: ConvertRequest): Promise<void> {
  const { layers, file, dataBytes, signal } = request;
  const source = `json:${JSON.stringify(chainNode(layers))}`;
  const timeoutMs = LEAST_TIMEOUT_MS + (dataBytes / SLOWEST_BYTES_PER_SECOND) * 1000;
  const end = watch(request);
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
