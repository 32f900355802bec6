import * as fs from 'node:fs';
import * as path from 'node:path';
import { afterAll, beforeAll, describe, expect, it, onTestFinished } from 'vitest';
import { run } from '../../src/host/exec.js';
import { mountAt } from '../../src/host/mountinfo.js';
import { signalProcess, waitForEnd } from '../../src/host/process-identity.js';
import { TestChunkmount } from '../support/chunkmount.js';
import { build, fuseDevice, program, requireAll, root } from '../support/requirements.js';
import { chunkFile, testBytes, writeTree } from '../support/trees.js';
import { CHUNK_DAMAGES } from './damages.js';
import { CHUNK, demoTree, editManifest, flipBit, KIB, MIB, swap, ZEROS } from './demo-tree.js';
import { daemonOf, expectError, mountImages, readAt, same } from './image-session.js';

const chunkmount = new TestChunkmount();

beforeAll(async () => {
  await requireAll(
    root,
    build,
    fuseDevice,
    program('cmp', 'diffutils'),
    program('python3'),
    program('qemu-img', 'qemu-utils'),
    program('qemu-nbd', 'qemu-utils'),
  );
});

afterAll(() => chunkmount.close());

/** All data segments of a file, by SEEK_DATA and SEEK_HOLE, and what a seek to its end gives. */
const SEGMENTS = `import os, sys, json, errno
fd = os.open(sys.argv[1], os.O_RDONLY)
size, at, found = os.fstat(fd).st_size, 0, []
while True:
    try:
        start = os.lseek(fd, at, os.SEEK_DATA)
    except OSError as error:
        assert error.errno == errno.ENXIO
        break
    at = os.lseek(fd, start, os.SEEK_HOLE)
    found.append([start, at])
# From within data and holes, not only from their ends.
for start, end in found:
    middle = (start + end) // 2
    assert os.lseek(fd, middle, os.SEEK_DATA) == middle
    assert os.lseek(fd, middle, os.SEEK_HOLE) == end
try:
    os.lseek(fd, size, os.SEEK_HOLE)
    found.append('no ENXIO')
except OSError as error:
    assert error.errno == errno.ENXIO
print(json.dumps(found))`;

async function segments(file: string): Promise<unknown> {
  return JSON.parse((await run('python3', ['-c', SEGMENTS, file])).stdout);
}

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
    fs.truncateSync(disk, 3 * MIB + 1024);
    expect(await same(image('disk0'), disk)).toBe(true);
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

describe('a damaged tree', () => {
  it.each(CHUNK_DAMAGES)('with $name: an error where it is read, and its name in the log', async (one) => {
    const demo = demoTree();
    one.damage(demo);
    const { image, log } = await mountImages(chunkmount, demo.root);
    const reading = readAt(image('vda'), 0, demo.content.byteLength);
    if (one.restore === undefined) {
      expect((await reading).equals(demo.content)).toBe(true);
      expect(log()).toBe('');
      return;
    }
    await expect(reading).rejects.toThrow(/Input\/output error/);
    expect(log()).toMatch(new RegExp(one.restore.source, 'm'));
  });

  it('gives everything but the damaged chunk, and names that once for each thread at most', async () => {
    const { root: tree, content, chunk } = demoTree();
    flipBit(chunk(7));
    const { image, log } = await mountImages(chunkmount, tree);
    for (let i = 0; i < 5; i++) await expect(readAt(image('vda'), 7 * CHUNK, 1)).rejects.toThrow();
    const before = await readAt(image('vda'), 0, 7 * CHUNK);
    const after = await readAt(image('vda'), 8 * CHUNK, content.byteLength);
    expect(before.equals(content.subarray(0, 7 * CHUNK))).toBe(true);
    expect(after.equals(content.subarray(8 * CHUNK))).toBe(true);
    const lines = log().trim().split('\n');
    expect(lines.length).toBeLessThanOrEqual(3);
    for (const line of lines)
      expect(line).toMatch(/\/mail01\/vda\/000000\/00000007 is corrupt: expected hash/);
  });

  it('can be mended while it is mounted', async () => {
    const { root: tree, content, chunk } = demoTree();
    const good = fs.readFileSync(chunk(7));
    fs.rmSync(chunk(7));
    const { image } = await mountImages(chunkmount, tree);
    await expect(readAt(image('vda'), 7 * CHUNK, 10)).rejects.toThrow(/Input\/output error/);
    fs.writeFileSync(chunk(7), good);
    expect((await readAt(image('vda'), 0, content.byteLength)).equals(content)).toBe(true);
  });

  it('is shown as it is by --no-verify: also by programs that skip holes', async () => {
    const { root: tree, content, chunk, beside } = demoTree();
    flipBit(chunk(7));
    flipBit(chunk(150));
    swap(chunk(20), chunk(21));
    fs.rmSync(chunk(30));
    fs.truncateSync(chunk(40), 100);
    const { image } = await mountImages(chunkmount, tree, '--no-verify');
    const expected = Buffer.from(content);
    expected[7 * CHUNK + 100]! ^= 4;
    expected[150 * CHUNK + 100]! ^= 4;
    content.copy(expected, 20 * CHUNK, 21 * CHUNK, 22 * CHUNK);
    content.copy(expected, 21 * CHUNK, 20 * CHUNK, 21 * CHUNK);
    for (const missing of [30, 40]) {
      await expect(readAt(image('vda'), missing * CHUNK, 1)).rejects.toThrow(/Input\/output error/);
    }
    const tail = 41 * CHUNK;
    await run('dd', [`if=${image('vda')}`, `of=${beside('head')}`, `bs=${CHUNK}`, 'count=30']);
    expect(fs.readFileSync(beside('head')).equals(expected.subarray(0, 30 * CHUNK))).toBe(true);
    expect((await readAt(image('vda'), tail, content.byteLength)).equals(expected.subarray(tail))).toBe(true);
    expect(await segments(image('vda'))).toEqual([[0, content.byteLength]]);
    expect(fs.statSync(image('vda')).blocks).toBe(Math.ceil(content.byteLength / 512));
  });

  it.each([
    ['missing', (file: string) => fs.rmSync(file), /vda\.xxh64 is missing$/],
    ['cut off', (file: string) => fs.truncateSync(file, 500), /vda\.xxh64 has 500 bytes instead of/],
    ['damaged', (file: string) => flipBit(file, 20), /vda\.xxh64 is damaged in line 1$/],
  ])('whose sums are %s needs --no-verify', async (_, damage, message) => {
    const { root: tree, content } = demoTree();
    damage(path.join(tree, 'vda.xxh64'));
    const mountpoint = fs.mkdtempSync(chunkmount.path('images-'));
    const error = expectError(await chunkmount.run(['image-mount', tree, mountpoint]), 4);
    expect(error.message).toMatch(message);
    expect(error.hint).toContain('--no-verify');
    expect(mountAt(mountpoint)).toBeUndefined();
    expect(daemonOf(mountpoint)).toEqual([]);
    const { image } = await mountImages(chunkmount, tree, '--no-verify');
    expect((await readAt(image('vda'), 0, content.byteLength)).equals(content)).toBe(true);
  });
});

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

  it('a loop device shows its partitions, and files can be copied out', async () => {
    await requireAll(
      program('mke2fs', 'e2fsprogs'),
      program('losetup', 'mount'),
      program('partx', 'util-linux'),
    );
    const { beside } = demoTree();
    fs.mkdirSync(beside('files'));
    fs.writeFileSync(path.join(beside('files'), 'letter'), testBytes(3 * MIB, 7));
    await run('mke2fs', ['-q', '-t', 'ext4', '-d', beside('files'), beside('partition'), '12M']);
    const partition = fs.readFileSync(beside('partition'));
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
      await run('mount', ['-o', 'ro', `${device}p1`, files]);
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

describe('image-unmount', () => {
  it('refuses while a program reads, and names it', async () => {
    const { root: tree } = demoTree();
    const { image, mountpoint } = await mountImages(chunkmount, tree);
    const fd = fs.openSync(image('vda'), 'r');
    try {
      const { message } = expectError(await chunkmount.run(['image-unmount', mountpoint]), 1);
      expect(message).toMatch(new RegExp(`is in use by .*\\(process ${process.pid}\\)$`));
      expect(daemonOf(mountpoint)).toHaveLength(1);
    } finally {
      fs.closeSync(fd);
    }
    await chunkmount.succeed('image-unmount', mountpoint);
  });

  it('works after the daemon was killed; readers get an error, not an empty disk', async () => {
    const { root: tree } = demoTree();
    const { image, mountpoint } = await mountImages(chunkmount, tree);
    const [daemon] = daemonOf(mountpoint);
    signalProcess(daemon!, 'SIGKILL');
    await waitForEnd(daemon!, 10_000);
    expect(() => fs.statfsSync(mountpoint)).toThrow(/ENOTCONN/);
    await expect(readAt(image('vda'), 0, 10)).rejects.toThrow(/not connected/);
    const again = expectError(await chunkmount.run(['image-mount', tree, mountpoint]), 2);
    expect(again.hint).toContain(`chunkmount image-unmount ${mountpoint}`);
    await chunkmount.succeed('image-unmount', mountpoint);
    await chunkmount.succeed('image-mount', tree, mountpoint);
  });

  it('is told a path that leads there, and ends the daemon', async () => {
    const { root: tree, beside } = demoTree();
    const { mountpoint } = await mountImages(chunkmount, tree);
    fs.symlinkSync(mountpoint, beside('link'));
    await chunkmount.succeed('image-unmount', beside('link'));
    expect(daemonOf(mountpoint)).toEqual([]);
  });

  it('leaves what is not an image-mount alone', async () => {
    const { beside } = demoTree();
    const other = beside('other');
    fs.mkdirSync(other);
    expectError(await chunkmount.run(['image-unmount', other]), 2);
    expectError(await chunkmount.run(['image-unmount', beside('nothing')]), 2);
    await run('mount', ['-t', 'tmpfs', 'tmpfs', other]);
    try {
      expectError(await chunkmount.run(['image-unmount', other]), 2);
      expect(mountAt(other)?.type).toBe('tmpfs');
    } finally {
      await run('umount', [other]);
    }
  });
});

describe('bad input', () => {
  it.each<[string, number, RegExp, (beside: (name: string) => string) => string[]]>([
    ['no such tree', 2, /there is no tree at/, (beside) => [beside('none'), beside('mnt')]],
    [
      'a directory that is no tree',
      4,
      /manifest\.json is missing/,
      (beside) => [beside('mnt'), beside('mnt')],
    ],
    ['no such mountpoint', 2, /there is no such directory/, (beside) => [beside('mail01'), beside('none')]],
    ['a file as mountpoint', 2, /ENOTDIR/, (beside) => [beside('mail01'), beside('mail01/manifest.json')]],
    ['a mountpoint that is not empty', 2, /is not empty/, (beside) => [beside('mail01'), beside('mail01')]],
    [
      'an unknown transport',
      2,
      /--transport=smoke is not possible/,
      (beside) => [beside('mail01'), beside('mnt'), '--transport=smoke'],
    ],
    [
      'an unknown owner',
      2,
      /there is no user called "nobody-at-all"/,
      (beside) => [beside('mail01'), beside('mnt'), '--owner=nobody-at-all'],
    ],
    [
      'a log that cannot be written',
      2,
      /the log .* cannot be written: ENOENT/,
      (beside) => [beside('mail01'), beside('mnt'), `--log=${beside('none/log')}`],
    ],
  ])('%s', async (_, exitCode, message, args) => {
    const { beside } = demoTree();
    fs.mkdirSync(beside('mnt'));
    const error = expectError(await chunkmount.run(['image-mount', ...args(beside)]), exitCode);
    expect(error.message).toMatch(message);
    expect(mountAt(beside('mnt'))).toBeUndefined();
    expect(daemonOf(beside('mnt'))).toEqual([]);
  });

  it('a mountpoint that is one already', async () => {
    const { root: tree } = demoTree();
    const { mountpoint } = await mountImages(chunkmount, tree);
    const { message, hint } = expectError(await chunkmount.run(['image-mount', tree, mountpoint]), 2);
    expect(message).toContain('is a mountpoint already');
    expect(hint).toContain(`chunkmount image-unmount ${mountpoint}`);
  });

  it.each(['image-mount', 'image-unmount'])('%s without arguments', async (command) => {
    const { exitCode, stderr, stdout } = await chunkmount.run([command]);
    expect({ exitCode, stdout }).toEqual({ exitCode: 2, stdout: '' });
    expect(stderr).toContain(`missing required argument`);
  });

  it('a manifest of a newer version, or that wants a file elsewhere', async () => {
    const { root: tree, beside } = demoTree();
    fs.mkdirSync(beside('mnt'));
    editManifest(tree, (manifest) => (manifest.version = 2));
    expectError(await chunkmount.run(['image-mount', tree, beside('mnt')]), 4);
    editManifest(tree, (manifest) => {
      manifest.version = 1;
      (manifest.disks as { target: string }[])[0]!.target = '../../etc/shadow';
    });
    expectError(await chunkmount.run(['image-mount', tree, beside('mnt')]), 4);
  });

  it('a signal while it mounts: nothing is left', async () => {
    const { root: tree, beside } = demoTree();
    fs.mkdirSync(beside('mnt'));
    const command = chunkmount.start(['image-mount', tree, beside('mnt')]);
    const deadline = Date.now() + 20_000;
    while (daemonOf(beside('mnt')).length === 0 && Date.now() < deadline) {
      await new Promise((resolve) => setTimeout(resolve, 5));
    }
    command.kill('SIGINT');
    expect((await command).exitCode).toBe(130);
    expect(mountAt(beside('mnt'))).toBeUndefined();
    expect(daemonOf(beside('mnt'))).toEqual([]);
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
