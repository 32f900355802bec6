import * as fs from 'node:fs';
import * as v from 'valibot';

const Digits = v.pipe(v.string(), v.regex(/^-?[0-9]{1,24}$/));

export const FileStateSchema = v.object({
  path: v.string(),
  /** As it is read; `data` for a data file of qcow2. */
  format: v.string(),
  device: Digits,
  inode: Digits,
  size: Digits,
  /** Nanoseconds since the epoch: last written, last changed in any way, made. */
  mtime: Digits,
  ctime: Digits,
  birth: Digits,
});

/** All that a file system tells of whether a file is the same, and was written. */
export type FileState = v.InferOutput<typeof FileStateSchema>;

/** Throws when the file is not there. */
export function fileState(path: string, format: string): FileState {
  const { dev, ino, size, mtimeNs, ctimeNs, birthtimeNs } = fs.statSync(path, { bigint: true });
  return {
    path,
    format,
    device: String(dev),
    inode: String(ino),
    size: String(size),
    mtime: String(mtimeNs),
    ctime: String(ctimeNs),
    birth: String(birthtimeNs),
  };
}

/** What differs between two states of a file, as a clause about it; undefined if nothing does. Its name may. */
export function difference(before: FileState, now: FileState): string | undefined {
  if (before.format !== now.format) return `is read as ${now.format}, and was read as ${before.format}`;
  const { device, inode, birth } = before;
  if (device !== now.device || inode !== now.inode || birth !== now.birth) return 'is another file';
  if (before.size !== now.size) return 'has another size';
  return before.mtime === now.mtime && before.ctime === now.ctime ? undefined : 'was written';
}
