import * as fs from 'node:fs';
import * as path from 'node:path';
import { promisify } from 'node:util';
import type { ManifestExtra } from '../chunks/manifest.js';
import { ChunkmountError } from '../errors.js';
import { pageBuffer } from '../host/page-buffer.js';
import { writeFullyAt } from './full-io.js';
import { type Tree, unreadable } from './tree.js';
import { openFile } from './tree-files.js';

const read = promisify(fs.read);
const PIECE_BYTES = 1024 * 1024;

/** The file of that kind, undefined if the tree has none. */
export function extraOf(tree: Tree, kind: ManifestExtra['kind']): ManifestExtra | undefined {
  return tree.manifest.extras.find((extra) => extra.kind === kind);
}

function damaged(file: string, what: string): ChunkmountError {
  return new ChunkmountError('integrity', `${file} ${what}`, {
    hint: `take ${path.basename(file)} from another copy of this backup`,
  });
}

/** Opens it for reading. Throws kind `integrity` unless it is a plain file of the size in the manifest. */
function openExtra(tree: Tree, { file, size }: ManifestExtra): number {
  const full = path.join(tree.root, file);
  let fd: number;
  try {
    fd = openFile(tree.fd, file);
  } catch (error) {
    throw unreadable(full, error);
  }
  const stat = fs.fstatSync(fd);
  if (stat.isFile() && stat.size === size) return fd;
  fs.closeSync(fd);
  if (!stat.isFile()) throw damaged(full, 'is no plain file');
  throw damaged(full, `has ${stat.size} bytes instead of ${size}`);
}

/** Throws kind `integrity` if it cannot be copied. */
export function checkExtra(tree: Tree, extra: ManifestExtra): void {
  fs.closeSync(openExtra(tree, extra));
}

export interface CopyOptions {
  readonly signal?: AbortSignal | undefined;
  /** Called with the bytes that came since. */
  readonly onBytes?: (amount: number) => void;
}

/** Copies it to the start of an open file, and syncs that. Throws kind `integrity`, and when `signal` is aborted. */
export async function copyExtra(
  tree: Tree,
  extra: ManifestExtra,
  targetFd: number,
  { signal, onBytes }: CopyOptions = {},
): Promise<void> {
  const fd = openExtra(tree, extra);
  try {
    const piece = pageBuffer(PIECE_BYTES);
    let done = 0;
    while (done < extra.size) {
      signal?.throwIfAborted();
      const wanted = Math.min(PIECE_BYTES, extra.size - done);
      const { bytesRead } = await read(fd, piece, 0, wanted, done);
      if (bytesRead === 0) throw damaged(path.join(tree.root, extra.file), `ends after ${done} bytes`);
      writeFullyAt(targetFd, piece, bytesRead, done);
      done += bytesRead;
      onBytes?.(bytesRead);
    }
    fs.fsyncSync(targetFd);
  } finally {
    fs.closeSync(fd);
  }
}
