import * as fs from 'node:fs';
import * as os from 'node:os';
import * as path from 'node:path';
import { execa } from 'execa';
import { afterAll, beforeAll, expect, it, vi } from 'vitest';
import type { Server } from '../../../src/fuse/transport.js';
import { built } from '../../restore/built.js';
import { build, fuseDevice, program, requireAll, root } from '../../support/requirements.js';

/** Shared numbers: how many threads have made themselves a file system; whether the slow link is being read, and may be. */
const [INSTANCES, WAITING, RELEASED] = [0, 1, 2];

/**
 * A directory with two links, of which one takes until it is released. Threads after the first `most` cannot serve it; of those that
 * can, all but the first one die of names that begin with "deadly".
 */
const FACTORY = `data:text/javascript,${encodeURIComponent(`
  const names = { slow: 2, fast: 3 };
  export async function createFilesystem({ shared, most }) {
    const number = Atomics.add(shared, ${INSTANCES}, 1);
    if (number >= most) throw new Error('no more of them');
    return {
      lookup: (_, name) => {
        if (number > 0 && name.startsWith('deadly')) throw new Error('this thread dies');
        return names[name] ?? -2;
      },
      getattr: (inode, into) => {
        Object.assign(into, { inode, kind: inode === 1 ? 'directory' : 'symlink', size: 0, blocks: 0, mtime: 1, mtimeNs: 0 });
        Object.assign(into, { mode: 0o755, nlink: 1, uid: 0, gid: 0, blockSize: 4096 });
        return 0;
      },
      readlink: (inode) => {
        if (inode === 2) {
          Atomics.store(shared, ${WAITING}, 1);
          Atomics.wait(shared, ${RELEASED}, 0);
        }
        return inode === 2 ? 'at last' : 'at once';
      },
      statistics: () => ({ blockSize: 4096, blocks: 0, files: 2 }),
      getxattr: () => -61,
      listxattr: () => [],
    };
  }`)}`;

let mountpoint: string;
beforeAll(async () => {
  await requireAll(root, build, fuseDevice, program('mount', 'readlink'));
  mountpoint = fs.mkdtempSync(path.join(os.tmpdir(), 'cm-threads-'));
});
afterAll(() => fs.rmdirSync(mountpoint));

/** Has threads serve it while `use` works. */
async function whileServed(
  most: number,
  use: (shared: Int32Array, server: Server) => Promise<void>,
): Promise<void> {
  const { KernelThreads } =
    await built<typeof import('../../../src/fuse/kernel/server.js')>('fuse/kernel/server');
  const { openDevice, mountDevice } =
    await built<typeof import('../../../src/fuse/kernel/mount.js')>('fuse/kernel/mount');
  const shared = new Int32Array(new SharedArrayBuffer(12));
  const device = openDevice();
  const server = new KernelThreads(device, FACTORY).serve({ shared, most }, false);
  await mountDevice(device, { mountpoint, source: 'chunkmount-threads', allowOther: false });
  try {
    await server.connected;
    await use(shared, server);
  } finally {
    Atomics.store(shared, RELEASED, 1);
    Atomics.notify(shared, RELEASED);
    // Who asked a thread that died waits until the connection is aborted, even when killed.
    await execa('umount', ['--force', '--lazy', mountpoint]);
  }
  try {
    await server.ended;
  } finally {
    fs.closeSync(device);
  }
}

const linkOf = async (name: string) => (await execa('readlink', [path.join(mountpoint, name)])).stdout;

it('one thread begins; others come, and answer while it waits for a disk', async () => {
  await whileServed(3, async (shared) => {
    expect(shared[INSTANCES]).toBe(1);
    const slow = linkOf('slow');
    await vi.waitFor(() => expect(shared[WAITING]).toBe(1), { timeout: 60_000 });
    expect(await linkOf('fast')).toBe('at once');
    expect(shared[INSTANCES]).toBeGreaterThan(1);
    Atomics.store(shared, RELEASED, 1);
    Atomics.notify(shared, RELEASED);
    expect(await slow).toBe('at last');
  });
});

it('others that cannot serve are told, and missed by nobody', async () => {
  const told = vi.spyOn(console, 'error').mockImplementation(() => {});
  await whileServed(1, async (shared) => {
    await vi.waitFor(() => expect(told).toHaveBeenCalledTimes(2), { timeout: 60_000 });
    expect(told).toHaveBeenCalledWith(expect.stringContaining('no more of them'));
    expect(shared[INSTANCES]).toBe(3);
    expect(await linkOf('fast')).toBe('at once');
  });
  told.mockRestore();
});

it('one of the others that dies while it serves is an error: nobody else answers what it was asked', async () => {
  const readers: PromiseLike<unknown>[] = [];
  const served = whileServed(3, async (_, server) => {
    let dead = false;
    server.ended.catch(() => {
      dead = true;
    });
    // The kernel remembers what is not there, so each name is asked for once.
    for (let i = 0; !dead && i < 100; i++) {
      readers.push(execa('readlink', [path.join(mountpoint, `deadly${i}`)], { reject: false }));
      await new Promise((resolve) => setTimeout(resolve, 100));
    }
  });
  await expect(served).rejects.toThrow('this thread dies');
  await Promise.all(readers);
});

it('a mount that is gone before the others come gets none', async () => {
  let shared!: Int32Array;
  await whileServed(3, async (numbers) => {
    shared = numbers;
  });
  const atEnd = shared[INSTANCES];
  await new Promise((resolve) => setTimeout(resolve, 3_000));
  expect(shared[INSTANCES]).toBe(atEnd);
});

it('a first one that cannot serve is an error', async () => {
  const { KernelThreads } =
    await built<typeof import('../../../src/fuse/kernel/server.js')>('fuse/kernel/server');
  const device = fs.openSync('/dev/fuse', 'r+');
  const shared = new Int32Array(new SharedArrayBuffer(12));
  const server = new KernelThreads(device, FACTORY).serve({ shared, most: 0 }, false);
  await expect(server.connected).rejects.toThrow('no more of them');
  await expect(server.ended).rejects.toThrow('no more of them');
  fs.closeSync(device);
});
