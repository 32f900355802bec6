import * as fs from 'node:fs';
import * as path from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { run } from '../../src/host/exec.js';
import { TestChunkmount } from '../support/chunkmount.js';
import { build, fuseDevice, program, requireAll, root } from '../support/requirements.js';
import { testBytes, writeTree } from '../support/trees.js';
import { demoTree, KIB, MIB } from './demo-tree.js';
import { expectError, mountImages } from './image-session.js';

const chunkmount = new TestChunkmount();

beforeAll(() =>
  requireAll(root, build, fuseDevice, program('qemu-img', 'qemu-utils'), program('qemu-nbd', 'qemu-utils')),
);

afterAll(() => chunkmount.close());

describe('other programs', () => {
  it('qemu-img and qemu-nbd read the image', async () => {
    const content = testBytes(6 * MIB, 6, [[MIB, 5 * MIB]]);
    const { root: tree, beside } = demoTree(content, 256 * KIB);
    fs.writeFileSync(beside('raw'), content);
    const { image } = await mountImages(chunkmount, tree);
    const compare = (format: string, file: string) =>
      run('qemu-img', ['compare', '-f', format, '-F', 'raw', file, beside('raw')]);
    await run('qemu-img', ['convert', '-f', 'raw', '-O', 'qcow2', image('vda'), beside('qcow2')]);
    await compare('qcow2', beside('qcow2'));
    expect(fs.statSync(beside('qcow2')).size).toBeLessThan(3 * MIB);
    await compare('raw', image('vda'));
    const socket = beside('nbd');
    const serve = ['--fork', '--read-only', '--format=raw', `--socket=${socket}`, image('vda')];
    await run('qemu-nbd', serve);
    // It ends when its one client has gone.
    await run('qemu-img', [
      'convert',
      '-f',
      'raw',
      '-O',
      'raw',
      `nbd+unix:///?socket=${socket}`,
      beside('got'),
    ]);
    expect(fs.readFileSync(beside('got')).equals(content)).toBe(true);
  });

  /** An MBR with one Linux partition from sector 2048 on. See the entry's layout in the UEFI specification, 5.2.1. */
  function masterBootRecord(sectors: number): Buffer {
    const sector = Buffer.alloc(512);
    sector[446 + 4] = 0x83;
    sector.writeUInt32LE(2048, 446 + 8);
    sector.writeUInt32LE(sectors, 446 + 12);
    sector.writeUInt16LE(0xaa55, 510);
    return sector;
  }

  /** The bytes of a file system at a moment when it was mounted: its journal wants to be replayed. */
  async function mountedThen(file: string, mountpoint: string): Promise<Buffer> {
    fs.mkdirSync(mountpoint);
    await run('mount', ['-o', 'loop', file, mountpoint]);
    try {
      fs.writeFileSync(path.join(mountpoint, 'written'), 'by the guest');
      await run('sync', ['--file-system', mountpoint]);
      return fs.readFileSync(file);
    } finally {
      await run('umount', [mountpoint]);
    }
  }

  /** What `mount -o` is given in the help's example. */
  async function exampleOptions(): Promise<string> {
    const help = await chunkmount.succeed('image-mount', '--help');
    return /^ *mount -o (\S+) \/dev\/loopNp1 /m.exec(help)![1]!;
  }

  it('a loop device shows its partitions, and files can be copied out of a VM that ran', async () => {
    await requireAll(
      program('mke2fs', 'e2fsprogs'),
      program('losetup', 'mount'),
      program('partx', 'util-linux'),
    );
    const { beside } = demoTree();
    fs.mkdirSync(beside('files'));
    fs.writeFileSync(path.join(beside('files'), 'letter'), testBytes(3 * MIB, 7));
    await run('mke2fs', ['-q', '-t', 'ext4', '-d', beside('files'), beside('partition'), '12M']);
    const partition = await mountedThen(beside('partition'), beside('guest'));
    const disk = Buffer.concat([
      masterBootRecord(partition.byteLength / 512),
      Buffer.alloc(2047 * 512),
      partition,
    ]);
    writeTree(beside('tree'), { disks: [{ target: 'vda', content: disk }] });
    const { image, mountpoint } = await mountImages(chunkmount, beside('tree'));
    const options = ['--find', '--show', '--read-only', '--partscan'];
    const device = (await run('losetup', [...options, image('vda')])).stdout.trim();
    try {
      const busy = expectError(await chunkmount.run(['image-unmount', mountpoint]), 1);
      expect(busy.message).toBe(`${mountpoint} is in use by ${device}`);
      expect(busy.hint).toContain(`losetup -d ${device}`);
      const files = fs.mkdtempSync(chunkmount.path('files-'));
      // Kernels made for virtual machines may not know any partition table; then partx tells them.
      if (!fs.existsSync(`${device}p1`)) await run('partx', ['--add', device]);
      await run('mount', ['-o', await exampleOptions(), `${device}p1`, files]);
      try {
        await run('cp', [path.join(files, 'letter'), beside('letter')]);
      } finally {
        await run('umount', [files]);
      }
    } finally {
      await run('losetup', ['--detach', device]);
    }
    expect(fs.readFileSync(beside('letter')).equals(testBytes(3 * MIB, 7))).toBe(true);
    await chunkmount.succeed('image-unmount', mountpoint);
  });
});
