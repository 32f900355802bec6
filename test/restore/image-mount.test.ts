import * as fs from 'node:fs';
import * as path from 'node:path';
import { afterAll, beforeAll, describe, expect, it, onTestFinished } from 'vitest';
import { run } from '../../src/host/exec.js';
import { CLI, TestChunkmount } from '../support/chunkmount.js';
import { build, fuseDevice, program, requireAll, root } from '../support/requirements.js';
import { chunkFile, testBytes, writeTree } from '../support/trees.js';
import { CHUNK, demoTree, KIB, MIB, ZEROS } from './demo-tree.js';
import { mountImages, readAt, same, segments } from './image-session.js';

const chunkmount = new TestChunkmount();

beforeAll(() => requireAll(root, build, fuseDevice, program('cmp', 'diffutils'), program('python3')));

afterAll(() => chunkmount.close());

describe('image-mount', () => {
  it.each([4 * KIB, 256 * KIB, 16 * MIB])(
    'shows every disk of the tree byte for byte, with chunks of %i bytes',
    async (chunkSize) => {
      const { directory, beside } = demoTree();
      const sizes = { vda: 17 * MIB + 3, vdb: 2 * chunkSize, vdc: chunkSize + 1, vdd: 1, vde: 0 };
      const disks = Object.entries(sizes).map(([target, size], seed) => {
        const zeros = target === 'vda' ? ([[MIB, 3 * MIB]] as const) : [];
        const content = testBytes(size, seed + 1, zeros);
        fs.writeFileSync(beside(target), content);
        return { target, content, chunkSize };
      });
      writeTree(beside('tree'), { disks });
      const { image, mountpoint, printed } = await mountImages(chunkmount, beside('tree'));
      expect(printed).toEqual(disks.map(({ target }) => image(target)));
      expect(fs.readdirSync(mountpoint).sort()).toEqual(disks.map(({ target }) => `${target}.img`));
      for (const [target, size] of Object.entries(sizes)) {
        expect(fs.statSync(image(target)).size).toBe(size);
        // Once past the sums, and once more from where it is read when it is known to be good.
        expect(await same(image(target), path.join(directory, target)), target).toBe(true);
        await run('dd', [`if=${image(target)}`, `of=${beside('direct')}`, 'bs=64K', 'iflag=direct']);
        expect(await same(beside('direct'), path.join(directory, target)), `${target}, O_DIRECT`).toBe(true);
      }
    },
  );

  it('says whose they are, when they are from, and what they take', async () => {
    const { root: tree, content } = demoTree();
    const { image, mountpoint } = await mountImages(chunkmount, tree, '--owner=65534:65534');
    const stat = fs.statSync(image('vda'));
    const seconds = Date.parse('2024-05-31T22:15:00Z');
    const data = content.byteLength - (ZEROS[1] - ZEROS[0]) * CHUNK;
    expect(stat).toMatchObject({
      uid: 65534,
      gid: 65534,
      size: content.byteLength,
      blocks: Math.ceil(data / 512),
      mtimeMs: seconds,
      nlink: 1,
    });
    expect(stat.mode & 0o7777).toBe(0o400);
    expect(fs.statSync(mountpoint).mode & 0o7777).toBe(0o500);
    expect(() => fs.openSync(image('vda'), 'r+')).toThrow(/EROFS/);
    expect(() => fs.writeFileSync(path.join(mountpoint, 'new'), '')).toThrow(/EROFS/);
    expect(() => fs.statSync(image('vdb'))).toThrow(/ENOENT/);
    const json = JSON.parse(await chunkmount.succeed('image-unmount', mountpoint, '--json')) as unknown;
    expect(json).toEqual({ unmounted: mountpoint });
  });

  it('takes paths from the directory that it is run in', async () => {
    const { root: tree, content, directory } = demoTree();
    fs.mkdirSync(path.join(directory, 'mnt'));
    const inDirectory = (...args: string[]) => run(process.execPath, [CLI, ...args], { cwd: directory });
    const { stdout } = await inDirectory('image-mount', path.basename(tree), 'mnt');
    expect(stdout).toBe(`${directory}/mnt/vda.img\n`);
    expect((await readAt(`${directory}/mnt/vda.img`, 0, 10)).equals(content.subarray(0, 10))).toBe(true);
    await inDirectory('image-unmount', 'mnt');
  });

  it('reads at any position, whatever was read before', async () => {
    const content = testBytes(5 * MIB + 77, 3);
    const { root: tree } = demoTree(content, 256 * KIB);
    const { image } = await mountImages(chunkmount, tree);
    const border = 256 * KIB;
    for (const [offset, length] of [
      [border - 1, 2],
      [3 * border + 5, 2 * border],
      [content.byteLength - 3, 100],
      [0, 1],
      [MIB - 4096, 8192],
      [content.byteLength - 1, 1],
    ] as const) {
      const got = await readAt(image('vda'), offset, length);
      expect(got.equals(content.subarray(offset, offset + length)), `${length} at ${offset}`).toBe(true);
    }
  });

  it('is one of several at once', async () => {
    const one = demoTree();
    const two = demoTree(testBytes(3 * MIB, 8), 256 * KIB);
    const first = await mountImages(chunkmount, one.root);
    const second = await mountImages(chunkmount, two.root);
    const again = await mountImages(chunkmount, one.root);
    fs.writeFileSync(one.beside('one'), one.content);
    fs.writeFileSync(two.beside('two'), two.content);
    expect(await same(first.image('vda'), one.beside('one'))).toBe(true);
    expect(await same(second.image('vda'), two.beside('two'))).toBe(true);
    await chunkmount.succeed('image-unmount', first.mountpoint);
    expect(await same(again.image('vda'), one.beside('one'))).toBe(true);
  });

  it('works on a tree that is mounted by chunkmount itself', async () => {
    const disk = chunkmount.path('disk.raw');
    fs.writeFileSync(disk, testBytes(3 * MIB + 1000, 4, [[MIB, 2 * MIB]]));
    await chunkmount.succeed(`--image=${disk}`, '--name=live');
    onTestFinished(async () => {
      await chunkmount.succeed('cleanup', '--name=live');
    });
    const { image } = await mountImages(chunkmount, chunkmount.tree('live'));
    // QEMU rounds a raw disk up to whole sectors.
    const rounded = chunkmount.path('rounded.raw');
    fs.copyFileSync(disk, rounded);
    fs.truncateSync(rounded, 3 * MIB + 1024);
    expect(await same(image('disk0'), rounded)).toBe(true);
  });

  it('is not to be unmounted where there is none', async () => {
    for (const place of [chunkmount.path('nowhere'), chunkmount.directory]) {
      const { exitCode, stderr } = await chunkmount.run(['image-unmount', place]);
      expect({ exitCode, stderr }).toEqual({
        exitCode: 2,
        stderr: `chunkmount: error: no images of a tree are mounted at ${place}\n  see what is mounted: findmnt\n`,
      });
    }
  });
});

describe('holes', () => {
  it('are found by SEEK_HOLE and SEEK_DATA', async () => {
    const { root: tree, content } = demoTree();
    const { image } = await mountImages(chunkmount, tree);
    expect(await segments(image('vda'))).toEqual([
      [0, ZEROS[0] * CHUNK],
      [ZEROS[1] * CHUNK, content.byteLength],
    ]);
  });

  it.each([
    ['all data', testBytes(3 * CHUNK + 5), [[0, 3 * CHUNK + 5]], 25],
    ['all zeros', Buffer.alloc(3 * CHUNK + 5), [], 0],
    ['ending in zeros', testBytes(3 * CHUNK + 5, 1, [[2 * CHUNK, 3 * CHUNK + 5]]), [[0, 2 * CHUNK]], 16],
    ['beginning with zeros', testBytes(2 * CHUNK, 1, [[0, CHUNK]]), [[CHUNK, 2 * CHUNK]], 8],
    ['without a byte', Buffer.alloc(0), [], 0],
  ])('of a disk %s: segments and st_blocks', async (_, content, expected, blocks) => {
    const { root: tree } = demoTree(content);
    const { image } = await mountImages(chunkmount, tree);
    expect(await segments(image('vda'))).toEqual(expected);
    expect(fs.statSync(image('vda')).blocks).toBe(blocks);
  });

  it('stay holes in copies by cp and tar', async () => {
    const content = testBytes(6 * MIB, 5, [[MIB, 5 * MIB]]);
    const { root: tree, beside } = demoTree(content, 256 * KIB);
    const { image, mountpoint } = await mountImages(chunkmount, tree);
    await run('cp', ['--sparse=auto', image('vda'), beside('copy')]);
    await run('tar', ['-C', mountpoint, '-S', '-cf', beside('tar'), 'vda.img']);
    fs.mkdirSync(beside('untarred'));
    await run('tar', ['-C', beside('untarred'), '-xf', beside('tar')]);
    for (const copy of [beside('copy'), path.join(beside('untarred'), 'vda.img')]) {
      expect(fs.readFileSync(copy).equals(content)).toBe(true);
      expect(fs.statSync(copy).blocks * 512).toBeLessThanOrEqual(2 * MIB + 64 * KIB);
    }
  });
});

/** Gives the user a /dev/fuse as Debian's udev has it, in a mount namespace of its own, and becomes that user. */
const AS_NOBODY = `set -e
mount -t tmpfs -o mode=0755 tmpfs "$1"
mknod "$1/fuse" c 10 229
chmod 0666 "$1/fuse"
mount --bind "$1/fuse" /dev/fuse
shift
exec setpriv --reuid 65534 --regid 65534 --clear-groups "$@"`;

it('an ordinary user mounts a tree of their own, through the native transport', async () => {
  await requireAll(
    program('fusermount3', 'fuse3'),
    program('unshare', 'util-linux'),
    program('setpriv', 'util-linux'),
  );
  const { root: tree, content, beside, directory } = demoTree();
  for (const name of ['devices', 'mnt']) fs.mkdirSync(beside(name));
  await run('chown', ['-R', '65534:65534', directory]);
  fs.writeFileSync(beside('raw'), content);
  const script = `set -e
"$1" "$2" image-mount "$3" "$4/mnt" --debug
stat -c '%U %a' "$4/mnt/vda.img"
cmp "$4/mnt/vda.img" "$4/raw" && echo same
"$1" "$2" image-unmount "$4/mnt"
ls -A "$4/mnt"
"$1" "$2" image-mount "$3" "$4/mnt" --owner=root 2>&1 || echo "exit $?"`;
  const { stdout, stderr } = await run(
    'unshare',
    [
      ...['--mount', '--propagation', 'private', 'sh', '-c', AS_NOBODY, 'sh', beside('devices')],
      ...['sh', '-c', script, 'sh', process.execPath],
      ...[path.resolve(import.meta.dirname, '../../dist/cli.js'), tree, directory],
    ],
    { env: { HOME: directory } },
  );
  expect(stderr).toContain('transport: native');
  expect(stdout.split('\n')).toEqual([
    `${beside('mnt')}/vda.img`,
    'nobody 400',
    'same',
    'chunkmount: error: --owner takes root',
    '  run as root, or leave it out',
    'exit 2',
    '',
  ]);
  expect(chunkFile('vda', 0)).toBe('vda/000000/00000000');
});
