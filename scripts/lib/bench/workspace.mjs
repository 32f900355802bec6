import { randomFillSync } from 'node:crypto';
import * as fs from 'node:fs';
import * as path from 'node:path';
import { interrupted, run } from './run.mjs';

export const CHUNK_SIZE = 256 * 1024;
const BLOCK_SIZE = 4 * 1024 ** 2;
/** One chunk in so many is rewritten. */
const REWRITTEN_EVERY = 100;

/** The images, and a place for everything else, in a directory that `remove` deletes. */
export class Workspace {
  /** Throws, and leaves nothing behind, if there is too little space. */
  static create({ directory, size, sparse, copies }) {
    const indexes = Math.ceil(sparse / CHUNK_SIZE) * 12 * 4;
    const needed = size * (1 + copies) + indexes + 512 * 1024 ** 2;
    const { bavail, bsize } = fs.statfsSync(directory);
    if (bavail * bsize < needed) {
      const gib = (bytes) => (bytes / 1024 ** 3).toFixed(1);
      throw new Error(
        `${directory} has ${gib(bavail * bsize)} GiB free, and ${gib(needed)} GiB are needed: give another --dir, or a smaller --size`,
      );
    }
    return new Workspace(
      fs.mkdtempSync(path.join(fs.realpathSync(directory), 'chunkmount-bench-')),
      size,
      sparse,
    );
  }

  constructor(root, size, sparse) {
    this.root = root;
    this.size = size;
    this.image = this.path('image.raw');
    this.sparseImage = sparse === 0 ? undefined : this.path('sparse.raw');
    this.sparseSize = sparse;
  }

  path(...names) {
    return path.join(this.root, ...names);
  }

  directory(name) {
    fs.mkdirSync(this.path(name), { recursive: true });
    return this.path(name);
  }

  /** Fills the image with random data. */
  makeImages() {
    const block = Buffer.alloc(BLOCK_SIZE);
    const fd = fs.openSync(this.image, 'w');
    for (let at = 0; at < this.size; at += BLOCK_SIZE) {
      interrupted.signal.throwIfAborted();
      fs.writeSync(fd, randomFillSync(block), 0, Math.min(BLOCK_SIZE, this.size - at));
    }
    fs.closeSync(fd);
    if (this.sparseImage === undefined) return;
    fs.writeFileSync(this.sparseImage, '');
    fs.truncateSync(this.sparseImage, this.sparseSize);
  }

  /** Chunks that are rewritten, the same each time: one in a hundred. */
  rewrittenChunks() {
    const count = this.size / CHUNK_SIZE;
    return Array.from({ length: Math.ceil(count / REWRITTEN_EVERY) }, (_, i) => i * REWRITTEN_EVERY);
  }

  /** Writes new random bytes into 1 % of the image's chunks. */
  async rewriteImage() {
    const chunk = Buffer.alloc(CHUNK_SIZE);
    const fd = fs.openSync(this.image, 'r+');
    for (const index of this.rewrittenChunks()) {
      fs.writeSync(fd, randomFillSync(chunk), 0, CHUNK_SIZE, index * CHUNK_SIZE);
    }
    fs.closeSync(fd);
    await this.settle();
  }

  /** Has everything that was written on disk, so that nothing is measured while it is. */
  async settle() {
    await run('sync', ['--file-system', this.root]);
  }

  remove() {
    fs.rmSync(this.root, { recursive: true, force: true });
  }
}

/** Reads a file, so that it is in the page cache. */
export async function warm(file) {
  await run('cat', [file], { discard: true });
}
