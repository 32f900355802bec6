import { ChunkmountError } from '../errors.js';
import { type DaemonWork, FUSE_DESCRIPTOR, runDaemon } from '../fuse/daemon-process.js';
import { KernelThreads } from '../fuse/kernel/server.js';
import type { Server, TransportKind } from '../fuse/transport.js';
import { scriptUrl } from '../host/program-files.js';
import type { ChunkSource } from './chunk-source.js';
import { dataBytes } from './data-bytes.js';
import type { ImageDirectory, ImageFile } from './image-filesystem.js';
import type { ImageMountConfig } from './image-mount-config.js';
import { openSource } from './open-source.js';
import { Tree } from './tree.js';

const FACTORY = scriptUrl('restore/image-filesystem.js').href;

async function openImageSource(tree: Tree, target: string, verify: boolean): Promise<ChunkSource> {
  try {
    return await openSource(tree, target, { evenWithoutSums: !verify });
  } catch (error) {
    if (!(error instanceof ChunkmountError) || error.kind !== 'integrity' || !verify) throw error;
    throw new ChunkmountError('integrity', error.message, {
      hint: 'take it from another copy of this backup, or mount the images unchecked: --no-verify',
      cause: error,
    });
  }
}

/** Without the sums there is no telling holes from data: see ImageReader.isHole. */
async function openImage(tree: Tree, target: string, verify: boolean): Promise<ImageFile> {
  const source = await openImageSource(tree, target, verify);
  const { size, chunkCount } = source.disk;
  const verified = verify ? new Uint8Array(new SharedArrayBuffer(chunkCount)) : undefined;
  return {
    name: `${target}.img`,
    image: { source: source.share(), verified },
    blocks: Math.ceil((verify ? dataBytes(source) : size) / 512),
  };
}

/** Serves the images of one tree until the mount is gone. Runs as a process of its own. */
class ImageDaemon implements DaemonWork {
  #threads: KernelThreads | undefined;

  constructor(private readonly config: ImageMountConfig) {}

  prepare(transport: TransportKind): void {
    if (transport === 'kernel') this.#threads = new KernelThreads(FUSE_DESCRIPTOR, FACTORY);
  }

  async start(): Promise<Server> {
    const { config } = this;
    const tree = Tree.open(config.tree, config.plain);
    // Without sums there is nothing to compare with.
    const verify = config.verify && !tree.isPlain;
    const files: ImageFile[] = [];
    for (const { target } of tree.manifest.disks) files.push(await openImage(tree, target, verify));
    const mtime = Math.floor(Date.parse(tree.manifest.snapshotTime) / 1000);
    const { uid, gid, fileMode, directoryMode } = config;
    const data: ImageDirectory = { files, uid, gid, mtime, fileMode, directoryMode };
    // Who reads an image reads large pieces, or keeps a cache of its own, as loop devices and VMs do; and the chunks are in the page
    // cache already. Without a second copy there reading is faster, and what running VMs need of it stays.
    const directIo = true;
    if (this.#threads !== undefined) return this.#threads.serve(data, directIo);
    const { serveNative } = await import('../fuse/native/server.js');
    const { SMALL_INODES } = await import('../fuse/native/inode-numbers.js');
    const { mountpoint, source, allowOther } = config;
    const filesystem = { factory: FACTORY, data };
    return serveNative({ filesystem, mountpoint, source, directIo: false, allowOther, inodes: SMALL_INODES });
  }

  ready(): readonly string[] {
    return [];
  }

  finish(): void {}
}

const [, , config] = process.argv;
if (config === undefined) throw new Error('the daemon is started by chunkmount itself');
await runDaemon(new ImageDaemon(JSON.parse(config) as ImageMountConfig));
