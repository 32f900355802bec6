import { messageOf } from '../errors.js';
import { EINVAL, EIO, EISDIR, ENODATA, ENOENT, ENOTDIR, ENXIO } from '../fuse/errno.js';
import {
  type Attributes,
  type EmitEntry,
  type FilesystemStatistics,
  type ReadOnlyFilesystem,
  SEEK_DATA,
  SEEK_HOLE,
} from '../fuse/filesystem.js';
import { ImageReader, type SharedImage } from './image-reader.js';

const ROOT_INODE = 1;
/** Inode number of the first image; the others follow. */
const FIRST_IMAGE = 2;

const BLOCK_SIZE = 4096;
/** What programs should read at once: a whole chunk of the usual size. */
const READ_SIZE = 256 * 1024;

/** One disk of the tree as a file. */
export interface ImageFile {
  readonly name: string;
  readonly image: SharedImage;
  /** Units of 512 bytes. */
  readonly blocks: number;
}

/** Plain data and shared memory: the same in every serving thread. */
export interface ImageDirectory {
  readonly files: readonly ImageFile[];
  readonly uid: number;
  readonly gid: number;
  /** Seconds since the epoch, of everything. */
  readonly mtime: number;
  readonly fileMode: number;
  readonly directoryMode: number;
}

interface OpenImage {
  readonly file: ImageFile;
  readonly reader: ImageReader;
}

/** The disks of a tree as raw images in one directory. */
class ImageFilesystem implements ReadOnlyFilesystem {
  /** Damage that has been written to the log: once is enough. */
  readonly #told = new Set<string>();

  constructor(
    private readonly directory: ImageDirectory,
    private readonly images: readonly OpenImage[],
  ) {}

  lookup(parent: number, name: string): number {
    if (name === '.') return parent;
    if (parent !== ROOT_INODE) return this.#image(parent) === undefined ? ENOENT : ENOTDIR;
    if (name === '..') return ROOT_INODE;
    const position = this.images.findIndex(({ file }) => file.name === name);
    return position < 0 ? ENOENT : FIRST_IMAGE + position;
  }

  getattr(inode: number, into: Attributes): number {
    const { uid, gid, mtime, fileMode, directoryMode } = this.directory;
    Object.assign(into, { inode, uid, gid, mtime, mtimeNs: 0 });
    if (inode === ROOT_INODE) {
      Object.assign(into, {
        kind: 'directory',
        size: BLOCK_SIZE,
        blocks: BLOCK_SIZE / 512,
        mode: directoryMode,
        nlink: 2,
        blockSize: BLOCK_SIZE,
      });
      return 0;
    }
    const image = this.#image(inode);
    if (image === undefined) return ENOENT;
    Object.assign(into, {
      kind: 'file',
      size: image.reader.size,
      blocks: image.file.blocks,
      mode: fileMode,
      nlink: 1,
      blockSize: READ_SIZE,
    });
    return 0;
  }

  readdir(inode: number, from: number, emit: EmitEntry): number {
    if (inode !== ROOT_INODE) return this.#image(inode) === undefined ? ENOENT : ENOTDIR;
    const entries: [string, number, 'directory' | 'file'][] = [
      ['.', ROOT_INODE, 'directory'],
      ['..', ROOT_INODE, 'directory'],
      ...this.images.map(({ file }, position): [string, number, 'file'] => [
        file.name,
        FIRST_IMAGE + position,
        'file',
      ]),
    ];
    for (let i = from; i < entries.length; i++) if (!emit(...entries[i]!, i + 1)) break;
    return 0;
  }

  read(inode: number, position: number, length: number, into: Uint8Array, at: number): number {
    const image = this.#image(inode);
    if (image === undefined) return inode === ROOT_INODE ? EISDIR : ENOENT;
    try {
      return image.reader.read(position, length, into, at);
    } catch (error) {
      this.#tell(messageOf(error));
      return EIO;
    }
  }

  /** Images are not counted. */
  firstRead(): boolean {
    return false;
  }

  readlink(): number {
    return EINVAL;
  }

  getxattr(): number {
    return ENODATA;
  }

  listxattr(): readonly string[] {
    return [];
  }

  seek(inode: number, position: number, whence: number): number {
    const image = this.#image(inode);
    if (image === undefined || (whence !== SEEK_DATA && whence !== SEEK_HOLE)) return EINVAL;
    const { size, chunkSize } = image.reader;
    if (position >= size) return ENXIO;
    const wanted = whence === SEEK_HOLE;
    let chunk = Math.floor(position / chunkSize);
    if (image.reader.isHole(chunk) === wanted) return position;
    do chunk++;
    while (chunk * chunkSize < size && image.reader.isHole(chunk) !== wanted);
    if (chunk * chunkSize < size) return chunk * chunkSize;
    return wanted ? size : ENXIO;
  }

  statistics(): FilesystemStatistics {
    const bytes = this.images.reduce((sum, { reader }) => sum + reader.size, 0);
    return { blockSize: BLOCK_SIZE, blocks: Math.ceil(bytes / BLOCK_SIZE), files: this.images.length + 1 };
  }

  #image(inode: number): OpenImage | undefined {
    return this.images[inode - FIRST_IMAGE];
  }

  #tell(message: string): void {
    if (this.#told.has(message)) return;
    this.#told.add(message);
    console.error(message);
  }
}

/** The FilesystemFactory of image directories; `data` is an ImageDirectory. */
export async function createFilesystem(data: unknown): Promise<ReadOnlyFilesystem> {
  const directory = data as ImageDirectory;
  const { files } = directory;
  const readers = await ImageReader.forThread(files.map(({ image }) => image));
  return new ImageFilesystem(
    directory,
    files.map((file, position) => ({ file, reader: readers[position]! })),
  );
}
