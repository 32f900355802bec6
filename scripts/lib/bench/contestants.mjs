import { randomFillSync } from 'node:crypto';
import * as fs from 'node:fs';
import * as path from 'node:path';
import { Chunkmount } from './chunkmount.mjs';
import { run, timed } from './run.mjs';
import { CHUNK_SIZE, warm } from './workspace.mjs';

/**
 * Those who show the image as chunks. Each has:
 *   name     its column
 *   copy     a directory with a copy of its tree
 *   scans    whether its tree is only complete after a scan
 *   warm()   puts what it reads into the page cache
 *   rewrite() changes 1 % of the chunks, the same for all
 *   open()   makes the tree visible: { tree, chunks, seconds }
 *   close(), end()
 */

/** chunkmount with one of its transports. Both share sessions' memory and the copy, and so see the same times. */
export class Transport {
  scans = true;

  constructor(workspace, transport) {
    this.workspace = workspace;
    this.name = transport;
    this.copy = workspace.directory('copy');
    this.chunkmount = new Chunkmount(workspace.directory('sessions'), { image: workspace.image, transport });
  }

  warm = () => warm(this.workspace.image);
  rewrite = () => this.workspace.rewriteImage();
  open = () => this.chunkmount.open();
  scanned = () => this.chunkmount.scanned();
  close = () => this.chunkmount.close();
  end = () => this.chunkmount.end();
}

/** The same chunks as files of the file system. */
export class Files {
  name = 'files';
  scans = false;

  constructor(workspace) {
    this.workspace = workspace;
    this.copy = workspace.directory('copy');
    this.tree = workspace.directory('files');
    this.chunks = path.join(this.tree, 'disk0');
  }

  async open() {
    return { tree: this.tree, chunks: this.chunks, seconds: undefined };
  }

  async warm() {
    await run('find', [this.chunks, '-type', 'f', '-exec', 'cat', '{}', '+'], { discard: true });
  }

  async rewrite() {
    const chunk = Buffer.alloc(CHUNK_SIZE);
    for (const index of this.workspace.rewrittenChunks()) {
      const name = index.toString(16).padStart(8, '0');
      fs.writeFileSync(path.join(this.chunks, name.slice(0, 6), name), randomFillSync(chunk), { flag: 'r+' });
    }
    await this.workspace.settle();
  }

  async close() {}
  async end() {}
}

/** chunkfs of virt-backup's, with its own defaults. */
export class Chunkfs {
  name = 'chunkfs';
  scans = false;

  constructor(workspace) {
    this.workspace = workspace;
    this.copy = workspace.directory('copy-chunkfs');
    this.mountpoint = workspace.directory('chunkfs');
  }

  warm = () => warm(this.workspace.image);
  rewrite = () => this.workspace.rewriteImage();

  async open() {
    const args = ['-o', 'ro', String(CHUNK_SIZE), this.workspace.image, this.mountpoint];
    const { seconds } = await timed(() => run('chunkfs', args, { discard: true }));
    return { tree: this.mountpoint, chunks: this.mountpoint, seconds };
  }

  async close() {
    await run('umount', [this.mountpoint]);
  }

  async end() {
    const mounts = fs.readFileSync('/proc/self/mounts', 'utf8');
    if (mounts.includes(` ${this.mountpoint} `))
      await run('umount', ['--lazy', this.mountpoint], { evenSo: true });
  }
}
