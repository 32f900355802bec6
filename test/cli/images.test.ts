import * as fs from 'node:fs';
import * as path from 'node:path';
import { execa } from 'execa';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { rsync, TestChunkmount } from '../support/chunkmount.js';
import { hole, IMAGE_KINDS, loopDevices, qemuImg, withLoopDevice, writeRaw } from '../support/images.js';
import { fuseDevice, program, requireAll, root } from '../support/requirements.js';
import { traces } from './expectations.js';

const KIB = 1024;
const MIB = 1024 * KIB;

interface Image {
  readonly name: string;
  readonly path: string;
  readonly format: string;
}

/** From image files to a tree, to a copy of it, and back: every kind of image, and QEMU's word for what is in it. */
describe('trees of images', () => {
  const chunkmount = new TestChunkmount();
  const byExtension = ['raw', 'qcow2', 'vmdk', 'vdi', 'vhdx'];
  const known: Image[] = [];
  const others: Image[] = [];

  beforeAll(async () => {
    await requireAll(
      root,
      fuseDevice,
      loopDevices,
      program('qemu-img', 'qemu-utils'),
      program('xxhsum', 'xxhash'),
      program('rsync'),
    );
    for (const image of await make(IMAGE_KINDS, 'images'))
      (byExtension.includes(image.format) ? known : others).push(image);
  });

  afterAll(() => chunkmount.close());

  async function make(kinds: typeof IMAGE_KINDS, where: string): Promise<Image[]> {
    const images: Image[] = [];
    for (const [number, kind] of kinds.entries()) {
      const directory = chunkmount.path(where, String(number));
      fs.mkdirSync(directory, { recursive: true });
      images.push({ name: kind.name, ...(await kind.make(directory)) });
    }
    return images;
  }

  /** The disk as a raw file, by QEMU's own account. */
  async function converted({ path: file, format }: Image): Promise<string> {
    const raw = chunkmount.path('converted.raw');
    await qemuImg('convert', '-f', format, '-O', 'raw', file, raw);
    return raw;
  }

  /** `find | sort | xargs cat`: the tree needs no tool of ours to be restored. */
  async function concatenated(tree: string, target: string): Promise<string> {
    const file = chunkmount.path('concatenated.raw');
    const script = 'find "$1" -type f -print0 | LC_ALL=C sort -z | xargs -0 -r cat >"$2"';
    await execa('sh', ['-c', script, 'sh', target, file], { cwd: tree });
    return file;
  }

  async function expectEqual(file: string, expected: string, what: string): Promise<void> {
    expect(fs.statSync(file).size, `size of ${what}`).toBe(fs.statSync(expected).size);
    const { exitCode } = await execa('cmp', [file, expected], { reject: false });
    expect(exitCode, what).toBe(0);
  }

  /** xxhsum has nothing to say about the sums of an empty disk, which has none. */
  async function checkSums(tree: string): Promise<void> {
    const sums = fs
      .readdirSync(tree)
      .filter((name) => name.endsWith('.xxh64') && fs.statSync(path.join(tree, name)).size > 0);
    if (sums.length === 0) return;
    const { stderr, exitCode } = await execa('xxhsum', ['--quiet', '-c', ...sums], {
      cwd: tree,
      reject: false,
    });
    expect({ exitCode, stderr }).toEqual({ exitCode: 0, stderr: '' });
  }

  /** One session with all of `images`: tree, sums, copy, restored images. */
  async function expectWhole(images: readonly Image[], ...options: string[]): Promise<void> {
    const tree = chunkmount.tree('disks');
    const copy = chunkmount.path('copy');
    const restored = chunkmount.path('restored');
    const given = `--image=${images.map((image) => image.path).join(',')}`;
    expect(await chunkmount.succeed(given, '--name=disks', ...options)).toBe(`${tree}\n`);
    await checkSums(tree);
    await rsync(tree, copy);
    const contents: string[] = [];
    for (const [number, image] of images.entries()) {
      const expected = chunkmount.path(`expected${number}.raw`);
      fs.renameSync(await converted(image), expected);
      await expectEqual(await concatenated(tree, `disk${number}`), expected, `tree of ${image.name}`);
      contents.push(expected);
    }
    await chunkmount.succeed('cleanup', '--name=disks');
    await checkSums(copy);
    await chunkmount.succeed('verify', copy);
    await chunkmount.succeed('restore', copy, `--to=${restored}/`);
    for (const [number, image] of images.entries()) {
      await expectEqual(
        path.join(restored, `disk${number}.raw`),
        contents[number]!,
        `restored ${image.name}`,
      );
      fs.rmSync(contents[number]!);
    }
    fs.rmSync(copy, { recursive: true });
    fs.rmSync(restored, { recursive: true });
    expect(traces(chunkmount)).toEqual([]);
  }

  it('has the bytes that QEMU reads, for every kind of image', async () => {
    expect(known.length).toBeGreaterThan(40);
    await expectWhole(known);
  });

  it('has them with formats that have to be named', async () => {
    expect(others.length).toBeGreaterThan(3);
    for (const format of new Set(others.map((image) => image.format))) {
      await expectWhole(
        others.filter((image) => image.format === format),
        `--format=${format}`,
      );
    }
  });

  it.each(['4K', '64K', '16M'])('has them with a chunk size of %s', async (size) => {
    const images = known.filter(({ name }) => /^raw,|^qcow2, compressed, then/.test(name));
    expect(images.length).toBeGreaterThan(6);
    await expectWhole(images, `--chunk-size=${size}`);
  });

  it('has them wherever the disk ends, seen from a chunk', async () => {
    const images = [-513, -512, -1, 0, 1, 512, 513].map((off) => ({
      name: `${off} bytes from a chunk`,
      ...writeRaw(chunkmount.path(`edge${off}.img`), 3 * 64 * KIB + off),
    }));
    await expectWhole(images, '--chunk-size=64K');
  });

  it('has them for a block device', async () => {
    const { path: file } = writeRaw(chunkmount.path('device'), MIB + 3 * 512);
    await withLoopDevice(file, (device) => expectWhole([{ name: 'loop', path: device, format: 'raw' }]));
  });

  it('shows an empty disk as a directory without chunks', async () => {
    const { path: file } = hole(chunkmount.path('empty.raw'), 0);
    await chunkmount.succeed(`--image=${file}`, '--name=empty');
    const tree = chunkmount.tree('empty');
    expect(fs.readdirSync(path.join(tree, 'disk0'))).toEqual([]);
    expect(fs.readFileSync(path.join(tree, 'disk0.xxh64'), 'utf8')).toBe('');
    await chunkmount.succeed('cleanup', '--name=empty');
  });

  it('shows no blocks for chunks of zeros, whether they are holes or were written, and blocks for all others', async () => {
    const file = chunkmount.path('zeros.raw');
    // Chunks: a hole, written zeros, a last byte that is not zero, a short last one.
    fs.writeFileSync(file, '');
    fs.truncateSync(file, 3 * 256 * KIB + 512);
    const fd = fs.openSync(file, 'r+');
    fs.writeSync(fd, Buffer.alloc(256 * KIB), 0, 256 * KIB, 256 * KIB);
    fs.writeSync(fd, Buffer.from([1]), 0, 1, 3 * 256 * KIB - 1);
    fs.closeSync(fd);
    await chunkmount.succeed(`--image=${file}`, '--name=zeros');
    const directory = path.join(chunkmount.tree('zeros'), 'disk0/000000');
    const blocks = fs.readdirSync(directory).map((name) => fs.statSync(path.join(directory, name)).blocks);
    expect(blocks).toEqual([0, 0, 512, 0]);
    await chunkmount.succeed('cleanup', '--name=zeros');
  });

  it('survives tar --sparse with its bytes, and getfattr shows the hash of each chunk', async () => {
    const { path: file } = writeRaw(chunkmount.path('tar.raw'), 2 * MIB + 512);
    await chunkmount.succeed(`--image=${file}`, '--name=tar');
    const tree = chunkmount.tree('tar');
    const unpacked = chunkmount.path('unpacked');
    fs.mkdirSync(unpacked);
    const script = 'tar --sparse -C "$1" -cf - . | tar -C "$2" -xf -';
    await execa('sh', ['-c', script, 'sh', tree, unpacked]);
    await execa('diff', ['--recursive', tree, unpacked]);
    await expectEqual(await concatenated(unpacked, 'disk0'), file, 'what tar brought back');
    for (const line of fs.readFileSync(path.join(tree, 'disk0.xxh64'), 'utf8').trimEnd().split('\n')) {
      const [hash, chunk = ''] = line.split('  ');
      const args = [
        '--only-values',
        '--absolute-names',
        '-n',
        'user.chunkmount.xxh64',
        path.join(tree, chunk),
      ];
      expect((await execa('getfattr', args)).stdout).toBe(hash);
    }
    await chunkmount.succeed('cleanup', '--name=tar');
    fs.chmodSync(unpacked, 0o700);
  });

  it('takes an image whose name has spaces, a leading dash, or is a link', async () => {
    const { path: file } = writeRaw(chunkmount.path('- odd "name".img'), 64 * KIB);
    const link = chunkmount.path('link.qcow2.img');
    fs.symlinkSync(file, link);
    for (const image of [file, link]) {
      await chunkmount.succeed(`--image=${image}`, '--name=odd');
      await expectEqual(await concatenated(chunkmount.tree('odd'), 'disk0'), file, image);
      await chunkmount.succeed('cleanup', '--name=odd');
    }
  });
});
