import * as fs from 'node:fs';
import * as path from 'node:path';
import { ChunkmountError } from '../errors.js';
import type { ChainRecord, DiskCopy } from './chain-record.js';
import { copiesBelow } from './chain-record.js';
import { type FileWork, sumOf } from './file-copy.js';

function altered(directory: string, { file, target }: DiskCopy, what: string, hint: string): ChunkmountError {
  return new ChunkmountError('integrity', `${path.join(directory, file)} ${what}`, {
    hint,
    details: { disk: target, file },
  });
}

export interface CheckOptions extends Omit<FileWork, 'label'> {
  /** What to do about a copy that is missing or altered. */
  readonly hint: string;
  /** Compute all sums; else only those of files with another time than recorded. */
  readonly thorough: boolean;
}

/** Throws, with the kind `integrity`, unless a copy and all that it lies on are as they were made. */
export async function checkCopies(
  directory: string,
  record: ChainRecord,
  file: string,
  options: CheckOptions,
): Promise<[DiskCopy, ...DiskCopy[]]> {
  const copies = copiesBelow(record, file);
  for (const copy of copies) {
    const name = path.join(directory, copy.file);
    const stat = fs.lstatSync(name, { throwIfNoEntry: false });
    if (stat === undefined) throw altered(directory, copy, 'is missing', options.hint);
    if (!stat.isFile()) throw altered(directory, copy, 'is no file', options.hint);
    if (stat.size !== copy.size) {
      throw altered(directory, copy, `has ${stat.size} bytes instead of ${copy.size}`, options.hint);
    }
    if (!options.thorough && stat.mtimeMs === copy.mtime) continue;
    const sum = await sumOf(name, { label: `checking ${copy.file}`, ...options });
    if (sum !== copy.sha256)
      throw altered(directory, copy, 'is not as it was made: its SHA-256 differs', options.hint);
  }
  return copies;
}
