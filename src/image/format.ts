import * as fs from 'node:fs';
import * as path from 'node:path';
import { usage } from '../errors.js';

/** QEMU's names of the format drivers that we read. Each was tried; the others of qemu-img(1) are protocols, filters or read nothing. */
export const IMAGE_FORMATS: readonly string[] = [
  'raw',
  'qcow2',
  'vmdk',
  'vdi',
  'vhdx',
  'vpc',
  'qed',
  'qcow',
  'parallels',
];

/** File extension, lower-case → format. Part of the CLI contract. */
const FORMAT_OF_EXTENSION: Readonly<Record<string, string>> = {
  '.raw': 'raw',
  '.img': 'raw',
  '.qcow2': 'qcow2',
  '.vmdk': 'vmdk',
  '.vdi': 'vdi',
  '.vhdx': 'vhdx',
};

export function isImageFormat(format: string): boolean {
  return IMAGE_FORMATS.includes(format);
}

/** Throws a usage error unless `format` is one that we read. */
export function checkImageFormat(format: string): string {
  if (isImageFormat(format)) return format;
  throw usage(`${JSON.stringify(format)} is no image format that can be read`, {
    hint: `give one of these as --format: ${IMAGE_FORMATS.join(', ')}`,
  });
}

function isBlockDevice(file: string): boolean {
  return fs.statSync(file, { throwIfNoEntry: false })?.isBlockDevice() === true;
}

/**
 * The format to read `file` in: the one given with `--format`, else raw for a block device, else by the file's
 * extension. The content is never asked: a guest can write any header into its raw disk. Throws a usage error when
 * nothing says it; `option` is what it is called there.
 */
export function imageFormat(file: string, given?: string | undefined, option = '--format'): string {
  if (given !== undefined) return checkImageFormat(given);
  if (isBlockDevice(file)) return 'raw';
  const extension = path.extname(file).toLowerCase();
  const format = Object.hasOwn(FORMAT_OF_EXTENSION, extension) ? FORMAT_OF_EXTENSION[extension] : undefined;
  if (format !== undefined) return format;
  throw usage(`the format of the image ${file} cannot be told from its name`, {
    hint: `give ${option}=raw or ${option}=qcow2 (it is never guessed from the content, which a guest can forge)`,
  });
}
