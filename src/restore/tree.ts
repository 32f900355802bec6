import * as fs from 'node:fs';
import * as path from 'node:path';
import { type Manifest, type ManifestDisk, parseManifest } from '../chunks/manifest.js';
import { MANIFEST_NAME } from '../chunks/paths.js';
import { ChunkmountError, failed, systemCode, usage } from '../errors.js';
import { type PlainShape, plainTree } from './plain-tree.js';
import { isWrongType, openFile } from './tree-files.js';

/** A manifest of 4096 disks, and domain XML as long as libvirt allows, are below this. */
const MAX_TEXT_BYTES = 8 * 1024 * 1024;

function openRoot(directory: string): number {
  try {
    return fs.openSync(directory, fs.constants.O_RDONLY | fs.constants.O_DIRECTORY);
  } catch (error) {
    const code = systemCode(error);
    const hint = 'give the directory that holds manifest.json';
    if (code === 'ENOENT')
      throw usage(`there is no tree at ${directory}: no such directory`, { hint, cause: error });
    if (code === 'ENOTDIR')
      throw usage(`there is no tree at ${directory}: it is not a directory`, { hint, cause: error });
    throw failed(`the tree ${directory} cannot be opened: ${code ?? error}`, {
      hint: 'trees are readable for root only',
      cause: error,
    });
  }
}

/** A tree: any copy of what a mount showed. Its content is untrusted. Keep it open while its chunk sources are in use. */
export class Tree {
  private constructor(
    /** Absolute. */
    readonly root: string,
    /** Descriptor of the directory. */
    readonly fd: number,
    readonly manifest: Manifest,
    /** A copy of a chunkfs mount: there are chunks and nothing else. */
    readonly isPlain = false,
  ) {}

  /**
   * Opens a tree and parses its manifest. Throws a usage error when there is no such directory, an error of kind
   * `integrity` when its manifest is missing, damaged or of a newer format. With `plain` it is a copy of a chunkfs mount, which has
   * none.
   */
  static open(directory: string, plain?: PlainShape): Tree {
    if (plain !== undefined) {
      const { root, manifest } = plainTree(directory, plain);
      return new Tree(root, openRoot(root), manifest, true);
    }
    const root = path.resolve(directory);
    const fd = openRoot(root);
    try {
      const manifest = parseManifest(readText(root, fd, MANIFEST_NAME), path.join(root, MANIFEST_NAME));
      return new Tree(root, fd, manifest);
    } catch (error) {
      fs.closeSync(fd);
      throw error;
    }
  }

  /** The disk called `target`. Throws a usage error that lists those that there are. */
  disk(target: string): ManifestDisk {
    const disk = this.manifest.disks.find((one) => one.target === target);
    if (disk !== undefined) return disk;
    const targets = this.manifest.disks.map((one) => one.target).join(', ');
    throw usage(`${this.root} has no disk ${JSON.stringify(target)}`, { hint: `it has: ${targets}` });
  }

  /** A small text file at the top of the tree, such as the domain XML. Throws errors of kind `integrity`. */
  readText(name: string): string {
    return readText(this.root, this.fd, name);
  }

  close(): void {
    fs.closeSync(this.fd);
  }
}

function readText(root: string, directory: number, name: string): string {
  const file = path.join(root, name);
  let fd: number;
  try {
    fd = openFile(directory, name);
  } catch (error) {
    throw unreadable(file, error);
  }
  try {
    const stat = fs.fstatSync(fd);
    if (!stat.isFile()) throw notPlain(file);
    if (stat.size > MAX_TEXT_BYTES) {
      throw new ChunkmountError('integrity', `${file} is too large: ${stat.size} bytes`, {
        hint: copyHint(file),
      });
    }
    return readOpened(fd, file);
  } finally {
    fs.closeSync(fd);
  }
}

function readOpened(fd: number, file: string): string {
  try {
    return fs.readFileSync(fd, 'utf8');
  } catch (error) {
    throw unreadable(file, error);
  }
}

function copyHint(file: string): string {
  return `take ${path.basename(file)} from another copy of this backup`;
}

function notPlain(file: string): ChunkmountError {
  return new ChunkmountError('integrity', `${file} is no plain file`, { hint: copyHint(file) });
}

/** The error for a file or directory of a tree that could not be opened or read. */
export function unreadable(file: string, error: unknown): ChunkmountError {
  if (isWrongType(error)) return notPlain(file);
  const code = systemCode(error);
  if (code !== 'ENOENT') {
    const hint =
      code === 'EACCES'
        ? 'trees are readable for root only'
        : `look at the storage that holds the backup (dmesg), or ${copyHint(file)}`;
    return failed(`${file} cannot be read: ${code ?? error}`, { hint, cause: error });
  }
  const hint =
    path.basename(file) === MANIFEST_NAME
      ? `give the directory that holds it, or ${copyHint(file)}; a copy of chunkfs takes --size`
      : copyHint(file);
  return new ChunkmountError('integrity', `${file} is missing`, { hint, cause: error });
}
