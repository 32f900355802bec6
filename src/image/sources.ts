import * as fs from 'node:fs';
import { failed, messageOf } from '../errors.js';
import type { ReaderSource } from './extent-reader.js';

/** Where extents lie: a file or block device (`size` bytes when mapped, 0 for a block device), or the raw view of the image. */
export type ImageSource =
  | { readonly kind: 'file'; readonly path: string; readonly size: number }
  | { readonly kind: 'view' };

function openSource(file: string, size: number): ReaderSource {
  let fd: number;
  try {
    fd = fs.openSync(file, 'r');
  } catch (error) {
    throw failed(`the image file ${file} cannot be opened: ${messageOf(error)}`, {
      details: { path: file },
      cause: error,
    });
  }
  const found = fs.fstatSync(fd);
  if (found.isBlockDevice() ? size === 0 : found.isFile() && found.size === size)
    return { fd, path: file, size };
  fs.closeSync(fd);
  throw failed(`the image file ${file} was changed since it was looked at`, {
    hint: 'make sure that nothing writes to it, and begin again',
    details: { path: file, sizeBefore: size, size: found.size },
  });
}

/**
 * Opens the sources of an inspected image, in order, for ExtentReader. `view` is the file of its raw view, needed if one of the
 * sources is. `viewSize` is the disk's size. On error none stays open.
 */
export function openSources(
  sources: readonly ImageSource[],
  viewSize: number,
  view?: string | undefined,
): ReaderSource[] {
  const open: ReaderSource[] = [];
  try {
    for (const source of sources) {
      if (source.kind === 'file') open.push(openSource(source.path, source.size));
      else if (view !== undefined) open.push(openSource(view, viewSize));
      else throw new Error('the image has to be read through a raw view, and none was started');
    }
    return open;
  } catch (error) {
    closeSources(open);
    throw error;
  }
}

/** Never throws: closing what was only read loses nothing, and a view whose daemon is gone answers ENOTCONN. */
export function closeSources(sources: readonly ReaderSource[]): void {
  for (const { fd } of sources) {
    try {
      fs.closeSync(fd);
    } catch {
      // The kernel has freed the descriptor all the same; see close(2).
    }
  }
}
