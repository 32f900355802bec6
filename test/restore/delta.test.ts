import * as fs from 'node:fs';
import { beforeAll, describe, expect, it } from 'vitest';
import type { RestoreOptions } from '../../src/commands/restore.js';
import { run } from '../../src/host/exec.js';
import type { RestoreResult } from '../../src/restore/restore-disk.js';
import { loopDevices, withLoopDevice } from '../support/images.js';
import { root as asRoot, build, program, requireAll } from '../support/requirements.js';
import { testBytes } from '../support/trees.js';
import { built, errorOf, RecordingContext } from './built.js';
import { CHUNK, CHUNKS, DEMO_SIZE, demoTree, flipBit, KIB, ZEROS } from './demo-tree.js';

type Module = typeof import('../../src/commands/restore.js');
let runRestore: Module['runRestore'];

beforeAll(async () => {
  await requireAll(build, asRoot, loopDevices, program('losetup', 'mount'), program('qemu-io', 'qemu-utils'));
  ({ runRestore } = await built<Module>('commands/restore'));
});

const DEFAULTS = { force: false, delta: false, keepGoing: false };

async function restore(
  given: Partial<RestoreOptions> & Pick<RestoreOptions, 'tree' | 'to'>,
): Promise<RestoreResult> {
  const context = new RecordingContext(true);
  await runRestore({ ...DEFAULTS, ...given }, context);
  return (JSON.parse(context.text) as { disks: [RestoreResult] }).disks[0];
}

/** The disk's content with one byte changed in each of these chunks. */
function changed(content: Buffer, chunks: readonly number[]): Buffer {
  const copy = Buffer.from(content);
  for (const chunk of chunks) copy[Math.min((chunk + 1) * CHUNK, copy.byteLength) - 1]! ^= 1;
  return copy;
}

describe('restore --delta to a file', () => {
  it.each([[[]], [[0]], [[CHUNKS - 1]], [[3, 4, 99, 100, 299, 300, 650]]])(
    'writes the chunks %j that differ',
    async (chunks) => {
      const { root, content, beside } = demoTree();
      const to = beside('old.img');
      fs.writeFileSync(to, changed(content, chunks));
      const result = await restore({ tree: root, to, delta: true });
      expect(result).toMatchObject({ written: chunks.length, unchanged: CHUNKS - chunks.length });
      expect(fs.readFileSync(to).equals(content)).toBe(true);
    },
  );

  it('writes to the file that is there, and only where it differs', async () => {
    const { root, content, beside } = demoTree();
    const to = beside('old.img');
    fs.writeFileSync(to, content);
    const { ino } = fs.statSync(to);
    // The first chunk of the tree is gone, and nobody misses it.
    fs.rmSync(beside('mail01/vda/000000/00000000'));
    await restore({ tree: root, to, delta: true });
    expect(fs.statSync(to).ino).toBe(ino);
    const before = fs.statSync(to).mtimeMs;
    await restore({ tree: root, to, delta: true });
    expect(fs.statSync(to).mtimeMs).toBe(before);
  });

  it.each([0, 1, DEMO_SIZE - CHUNK, DEMO_SIZE - 1])(
    'makes a file of %i bytes as large as the disk',
    async (size) => {
      const { root, content, beside } = demoTree();
      const to = beside('old.img');
      fs.writeFileSync(to, content.subarray(0, size));
      await restore({ tree: root, to, delta: true });
      expect(fs.readFileSync(to).equals(content)).toBe(true);
    },
  );

  it.each([DEMO_SIZE + 1, DEMO_SIZE + 3 * CHUNK])(
    'does not cut off a file of %i bytes unless told to, and then at the end',
    async (size) => {
      const { root, content, beside, chunk } = demoTree();
      const to = beside('old.img');
      const old = Buffer.alloc(size, 0xee);
      fs.writeFileSync(to, old);
      expect((await errorOf(restore({ tree: root, to, delta: true }), 'usage')).message).toBe(
        `${to} is larger than vda: it has ${size} bytes, vda has ${DEMO_SIZE}`,
      );
      expect(fs.readFileSync(to).equals(old)).toBe(true);
      flipBit(chunk(CHUNKS - 1));
      await errorOf(restore({ tree: root, to, delta: true, force: true }), 'integrity');
      expect(fs.statSync(to).size).toBe(size);
      flipBit(chunk(CHUNKS - 1));
      const stopped = new RecordingContext();
      stopped.controller.abort();
      await errorOf(runRestore({ ...DEFAULTS, tree: root, to, delta: true, force: true }, stopped), 'failed');
      expect(fs.statSync(to).size).toBe(size);
      await restore({ tree: root, to, delta: true, force: true });
      expect(fs.readFileSync(to).equals(content)).toBe(true);
    },
  );

  it.each([
    [0, /^notice: nothing was written to .*old\.img$/],
    [650, /^notice: .*old\.img is half old, half new;/],
  ])('says whether anything was written before chunk %i was found damaged', async (index, said) => {
    const { root, chunk, beside } = demoTree();
    flipBit(chunk(index));
    fs.writeFileSync(beside('old.img'), '');
    const context = new RecordingContext();
    await errorOf(
      runRestore({ ...DEFAULTS, tree: root, to: beside('old.img'), delta: true }, context),
      'integrity',
    );
    expect(context.messages.filter((message) => message.startsWith('notice'))).toEqual([
      expect.stringMatching(said),
    ]);
  });

  it('writes zeros where there are none', async () => {
    const { root, content, beside } = demoTree();
    const to = beside('old.img');
    fs.writeFileSync(to, Buffer.alloc(DEMO_SIZE, 0xee));
    expect(await restore({ tree: root, to, delta: true })).toMatchObject({ written: CHUNKS, zero: 0 });
    expect(fs.readFileSync(to).equals(content)).toBe(true);
  });

  it('rolls one backup back to another', async () => {
    const { root, content, beside } = demoTree();
    const later = demoTree(changed(content, [10, 20, 500]));
    const to = beside('disk.img');
    await restore({ tree: later.root, to });
    expect(await restore({ tree: root, to, delta: true })).toMatchObject({
      written: 3,
      unchanged: CHUNKS - 3,
    });
    expect(fs.readFileSync(to).equals(content)).toBe(true);
  });

  it('needs a file', async () => {
    const { root, beside } = demoTree();
    await errorOf(restore({ tree: root, to: beside('new.img'), delta: true }), 'usage');
  });

  it.each(['qcow2', 'vmdk', 'vdi', 'vhdx', 'vpc', 'qed'])(
    'does not write over a %s image unless told to',
    async (format) => {
      const { root, content, beside } = demoTree();
      const to = beside('disk.img');
      await run('qemu-img', ['create', '-q', '-f', format, to, '1M']);
      const before = fs.readFileSync(to);
      await errorOf(restore({ tree: root, to, delta: true }), 'usage');
      expect(fs.readFileSync(to).equals(before)).toBe(true);
      fs.truncateSync(to, Math.min(before.byteLength, DEMO_SIZE));
      const error = await errorOf(restore({ tree: root, to, delta: true }), 'usage');
      expect(error.message).toMatch(/ looks like a \w+ image, and --delta writes a raw one/);
      await restore({ tree: root, to, delta: true, force: true });
      expect(fs.readFileSync(to).equals(content)).toBe(true);
    },
  );
});

/** A loop device of that many bytes, filled with something. */
async function withDevice(file: string, size: number, use: (device: string) => Promise<void>): Promise<void> {
  fs.writeFileSync(file, Buffer.alloc(size, 0xdd));
  await withLoopDevice(file, use);
}

/** 512-byte sectors that hold the disk. */
const DEVICE_SIZE = Math.ceil(DEMO_SIZE / 512) * 512;

function readDevice(device: string, length: number): Buffer {
  const fd = fs.openSync(device, 'r');
  try {
    const data = Buffer.alloc(length);
    fs.readSync(fd, data, 0, length, 0);
    return data;
  } finally {
    fs.closeSync(fd);
  }
}

describe('restore to a block device', () => {
  it('wants --force or --delta', async () => {
    const { root, beside } = demoTree();
    await withDevice(beside('backing'), DEVICE_SIZE, async (device) => {
      const error = await errorOf(restore({ tree: root, to: device }), 'usage');
      expect(error.message).toBe(`${device} is a block device`);
      expect(readDevice(device, 10).equals(Buffer.alloc(10, 0xdd))).toBe(true);
    });
  });

  it('overwrites all of the disk, zeros too, and nothing behind it', async () => {
    const { root, content, beside } = demoTree();
    await withDevice(beside('backing'), DEVICE_SIZE + 64 * KIB, async (device) => {
      const result = await restore({ tree: root, to: device, force: true });
      expect(result).toMatchObject({ written: CHUNKS, zero: 0, to: device });
      const found = readDevice(device, DEVICE_SIZE + 64 * KIB);
      expect(found.subarray(0, DEMO_SIZE).equals(content)).toBe(true);
      expect(found.subarray(DEMO_SIZE).every((byte) => byte === 0xdd)).toBe(true);
    });
  });

  it('follows a link to it, as those in /dev/vg are', async () => {
    const { root, content, beside } = demoTree();
    await withDevice(beside('backing'), DEVICE_SIZE, async (device) => {
      fs.symlinkSync(device, beside('lv'));
      await restore({ tree: root, to: beside('lv'), force: true });
      expect(readDevice(device, DEMO_SIZE).equals(content)).toBe(true);
    });
  });

  it('does not write zeros where there are zeros, so that thin volumes stay thin', async () => {
    const { root, content, beside } = demoTree();
    const file = beside('backing');
    fs.writeFileSync(file, '');
    fs.truncateSync(file, DEVICE_SIZE);
    await withLoopDevice(file, async (device) => {
      const zero = ZEROS[1] - ZEROS[0];
      expect(await restore({ tree: root, to: device, force: true })).toMatchObject({
        written: CHUNKS - zero,
        zero,
      });
      expect(readDevice(device, DEMO_SIZE).equals(content)).toBe(true);
    });
  });

  it('writes only what differs with --delta', async () => {
    const { root, content, beside } = demoTree();
    await withDevice(beside('backing'), DEVICE_SIZE, async (device) => {
      await restore({ tree: root, to: device, force: true });
      const fd = fs.openSync(device, 'r+');
      fs.writeSync(fd, testBytes(3 * CHUNK, 5), 0, 3 * CHUNK, 30 * CHUNK);
      fs.closeSync(fd);
      expect(await restore({ tree: root, to: device, delta: true })).toMatchObject({
        written: 3,
        unchanged: CHUNKS - 3,
      });
      expect(readDevice(device, DEMO_SIZE).equals(content)).toBe(true);
    });
  });

  it('does not write over a qcow2 image in it unless told to', async () => {
    const { root, content, beside } = demoTree();
    await withDevice(beside('backing'), DEVICE_SIZE, async (device) => {
      await run('qemu-img', ['create', '-q', '-f', 'qcow2', device, '1M']);
      const error = await errorOf(restore({ tree: root, to: device, delta: true }), 'usage');
      expect(error.message).toContain('looks like a qcow2 image');
      await restore({ tree: root, to: device, delta: true, force: true });
      expect(readDevice(device, DEMO_SIZE).equals(content)).toBe(true);
    });
  });

  it('refuses one that is too small before anything is written', async () => {
    const { root, beside } = demoTree();
    await withDevice(beside('backing'), DEVICE_SIZE - 512, async (device) => {
      const error = await errorOf(restore({ tree: root, to: device, force: true }), 'usage');
      expect(error.message).toBe(
        `${device} is too small: it has ${DEVICE_SIZE - 512} bytes, vda has ${DEMO_SIZE}`,
      );
      expect(readDevice(device, CHUNK).equals(Buffer.alloc(CHUNK, 0xdd))).toBe(true);
    });
  });

  it('takes one that is exactly as large as the disk', async () => {
    const { root, content, beside } = demoTree(testBytes(8 * CHUNK));
    fs.writeFileSync(beside('backing'), Buffer.alloc(content.byteLength, 0xee));
    await withLoopDevice(beside('backing'), async (to) => {
      await restore({ tree: root, to, force: true });
    });
    expect(fs.readFileSync(beside('backing')).equals(content)).toBe(true);
  });

  it('refuses one that is mounted', async () => {
    const { root, beside } = demoTree();
    const file = beside('backing');
    fs.writeFileSync(file, Buffer.alloc(4 * 1024 * KIB));
    await run('mkfs.ext4', ['-q', file]);
    await withLoopDevice(file, async (device) => {
      fs.mkdirSync(beside('mnt'));
      await run('mount', [device, beside('mnt')]);
      try {
        expect((await errorOf(restore({ tree: root, to: device, force: true }), 'failed')).message).toBe(
          `${device} is in use`,
        );
      } finally {
        await run('umount', [beside('mnt')]);
      }
    });
  });
});
