import * as fs from 'node:fs';
import * as path from 'node:path';
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest';
import { run } from '../../src/host/exec.js';
import { mountAt } from '../../src/host/mountinfo.js';
import { CLI, TestChunkmount } from '../support/chunkmount.js';
import { noise, qemuImg } from '../support/images.js';
import { pathWithout } from '../support/path-without.js';
import { fuseDevice, program, requireAll, root } from '../support/requirements.js';
import { expectError, traces } from './expectations.js';

const MIB = 1024 * 1024;
const NOBODY = 65534;

/** Fields of a qcow2 header: docs/interop/qcow2.txt of QEMU. */
const QCOW2 = { backingOffset: 8, backingLength: 16, clusterBits: 20, l1Size: 36, l1Offset: 40 };

/** With --image: each failure has a sentence that names the thing, and a hint; and nothing is left behind. */
describe('with images, bad input', () => {
  const chunkmount = new TestChunkmount();
  const image = chunkmount.path('disk.raw');
  const tree = chunkmount.tree('demo');

  beforeAll(async () => {
    await requireAll(root, fuseDevice, program('qemu-img', 'qemu-utils'), program('setpriv', 'util-linux'));
    fs.writeFileSync(image, noise(MIB, 1));
  });

  afterEach(async () => {
    const left = traces(chunkmount);
    // One test that fails shall not take the others with it.
    if (left.length > 0) await chunkmount.run(['cleanup', '--all']);
    expect(left).toEqual([]);
  });

  afterAll(() => chunkmount.close());

  const mount = (file: string, ...options: string[]) =>
    chunkmount.run([`--image=${file}`, '--name=demo', ...options]);

  async function qcow2(name: string, ...options: string[]): Promise<string> {
    const file = chunkmount.path(name);
    await qemuImg('create', '-q', '-f', 'qcow2', ...options, file, '4M');
    return file;
  }

  /** Overwrites bytes of a file. */
  function patch(file: string, offset: number, bytes: Uint8Array): void {
    const fd = fs.openSync(file, 'r+');
    fs.writeSync(fd, bytes, 0, bytes.length, offset);
    fs.closeSync(fd);
  }

  function bigEndian(value: number, length: 4 | 8): Buffer {
    const bytes = Buffer.alloc(length);
    bytes.writeUIntBE(value, length - 4, 4);
    return bytes;
  }

  describe('an image that', () => {
    it.each<[string, (file: string) => void, RegExp]>([
      ['has no magic number', (file) => patch(file, 0, Buffer.from('XXXX')), /Image is not in qcow2 format/],
      ['is empty', (file) => fs.truncateSync(file, 0), /Could not read qcow2 header|not in qcow2 format/],
      ['has a header that is cut off', (file) => fs.truncateSync(file, 60), /qcow2/],
      ['has impossible clusters', (file) => patch(file, QCOW2.clusterBits, bigEndian(60, 4)), /cluster size/],
      ['has a huge table', (file) => patch(file, QCOW2.l1Size, bigEndian(0x7fff_ffff, 4)), /L1/],
      [
        'has its table beyond its end',
        (file) => patch(file, QCOW2.l1Offset, bigEndian(2 ** 31, 8)),
        /is cut off: it ends at/,
      ],
      [
        'has its table at a place that no file reaches',
        (file) => patch(file, QCOW2.l1Offset, Buffer.from('3fffffffffff0000', 'hex')),
        /is cut off: it ends at|L1 table/,
      ],
      [
        'is cut off in its table',
        (file) => fs.truncateSync(file, 3 * 65536 + 4),
        /is cut off: it ends at 196612/,
      ],
      [
        'is cut off in a table of the second level',
        (file) => fs.truncateSync(file, 4 * 65536 + 8),
        /is cut off: it ends at 262152, and its tables reach up to 327680/,
      ],
      [
        'is cut off in its data',
        (file) => fs.truncateSync(file, 10 * 65536),
        /is cut off: it ends at 655360/,
      ],
    ])('%s is refused', async (_, damage, said) => {
      const file = await qcow2('broken.qcow2');
      await run('qemu-io', ['-f', 'qcow2', '-c', 'write -P 7 0 1M', file]);
      damage(file);
      const told = expectError(await mount(file), 1);
      expect(told.message).toContain(file);
      expect(told.message).toMatch(said);
      expect(told.hint).toMatch(/qemu-img check|another copy/);
    });

    it('has lost its backing file is refused, with the name of both', async () => {
      const base = await qcow2('base.qcow2');
      const top = await qcow2('top.qcow2', '-b', base, '-F', 'qcow2');
      fs.rmSync(base);
      const told = expectError(await mount(top), 1);
      expect(told.message).toBe(`the backing file of ${top}, ${base} does not exist`);
      expect(told.hint).toMatch(/is its path right/);
    });

    it.each([
      'nbd://127.0.0.1:1/x',
      'json:{"driver":"raw","file":{"driver":"file","filename":"/etc/shadow"}}',
      'fat:rw:/etc',
      '/dev/zero',
      '/proc/kcore',
      '../../../../../../../../../../etc',
    ])('names %s as its backing file is refused', async (name) => {
      const file = await qcow2('hostile.qcow2', '-u', '-b', 'x'.repeat(name.length), '-F', 'raw');
      const header = fs.readFileSync(file);
      expect(header.readUInt32BE(QCOW2.backingLength)).toBe(name.length);
      patch(file, Number(header.readBigUInt64BE(QCOW2.backingOffset)), Buffer.from(name));
      const told = expectError(await mount(file), 1);
      expect(told.message).toContain(file);
    });

    it('does not exist, or is none, is refused', async () => {
      const nowhere = chunkmount.path('nowhere.raw');
      expect(expectError(await mount(nowhere), 1).message).toBe(`there is no image ${nowhere}`);
      expect(expectError(await mount('/dev/zero', '--format=raw'), 1).message).toMatch(
        /neither a file nor a block device/,
      );
      expect(expectError(await mount(chunkmount.directory, '--format=raw'), 1).message).toMatch(
        /neither a file nor a block device/,
      );
    });
  });

  describe('a mountpoint', () => {
    afterEach(() => fs.rmSync(tree, { recursive: true }));

    it('where something is mounted is left alone', async () => {
      fs.mkdirSync(tree, { recursive: true });
      await run('mount', ['-t', 'tmpfs', '-o', 'size=4k', 'tmpfs', tree]);
      const told = expectError(await mount(image), 1);
      expect(told).toEqual({
        message: `${tree} is a mountpoint already (tmpfs)`,
        hint: `unmount it: umount ${tree}`,
      });
      expect(mountAt(tree)?.type).toBe('tmpfs');
      await run('umount', [tree]);
    });

    it('that has files in it is left alone', async () => {
      fs.mkdirSync(path.join(tree, 'important'), { recursive: true });
      expect(expectError(await mount(image), 1).message).toBe(`${tree} is not empty`);
      expect(fs.readdirSync(tree)).toEqual(['important']);
    });

    it('that is a file is left alone', async () => {
      fs.mkdirSync(path.dirname(tree), { recursive: true });
      fs.writeFileSync(tree, 'important');
      expect(expectError(await mount(image), 1).message).toBe(`${tree} is a file`);
      expect(fs.readFileSync(tree, 'utf8')).toBe('important');
    });

    it('that leads elsewhere is left alone', async () => {
      fs.mkdirSync(path.dirname(tree), { recursive: true });
      fs.symlinkSync('/etc', tree);
      expectError(await mount(image), 1);
      expect(fs.readlinkSync(tree)).toBe('/etc');
    });
  });

  it('a backup directory that is a file is left alone', async () => {
    const told = expectError(await mount(image, `--backupdir=${image}`), 1);
    expect(told.message).toContain(`the directory ${image} cannot be used`);
  });

  it.each([
    ['qemu-img', 'qemu-utils', image.replace(/raw$/, 'qcow2')],
    ['qemu-storage-daemon', 'qemu-system-common', image],
    ['mount', 'mount', image],
    ['flock', 'util-linux', image],
  ])('without %s, it is named, and the package that has it', async (name, packageName, file) => {
    if (file !== image) await qemuImg('convert', '-f', 'raw', '-O', 'qcow2', image, file);
    const env = pathWithout(fs.mkdtempSync(chunkmount.path('path-')), name);
    const told = expectError(await chunkmount.run([`--image=${file}`, '--name=demo'], env), 1);
    expect(told).toEqual({
      message: `${name} is not installed`,
      hint: `install it: apt-get install ${packageName}`,
    });
  });

  it('a session is there already: exit code 3', async () => {
    await chunkmount.succeed(`--image=${image}`, '--name=demo');
    const told = expectError(await mount(image), 3);
    expect(told.message).toMatch(/^demo has a session already: it is mounted at /);
    expect(fs.existsSync(path.join(tree, 'disk0/000000/00000000'))).toBe(true);
    await chunkmount.succeed('cleanup', '--name=demo');
  });

  it('without root, the kernel transport is refused before anything is done', async () => {
    const directory = chunkmount.path('nobody');
    fs.mkdirSync(directory);
    fs.chownSync(directory, NOBODY, NOBODY);
    const user = [`--reuid=${NOBODY}`, `--regid=${NOBODY}`, '--clear-groups'];
    // The checkout may lie in root's home.
    const mayRead = ['--inh-caps=+dac_read_search', '--ambient-caps=+dac_read_search'];
    const args = [`--image=${image}`, '--name=demo', '--transport=kernel'];
    const result = await run('setpriv', [...user, ...mayRead, '--', process.execPath, CLI, ...args], {
      env: { CHUNKMOUNT_STATEDIR: `${directory}/state`, CHUNKMOUNT_BACKUPDIR: `${directory}/backup` },
      accept: [1, 2],
    });
    expect(expectError(result, 2)).toEqual({
      message: 'the kernel transport is not possible: mounting /dev/fuse directly takes root',
      hint: 'run as root, or give --transport=native',
    });
    expect(fs.readdirSync(`${directory}/state/sessions`)).toEqual([]);
  });
});
