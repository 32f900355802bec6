import * as fs from 'node:fs';
import * as path from 'node:path';
import { execa } from 'execa';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { findProcesses } from '../../src/host/process-list.js';
import { TestChunkmount } from '../support/chunkmount.js';
import { checkSums, filesIn, imagesOf, programFirst } from '../support/dumps.js';
import { noise } from '../support/images.js';
import { eventually, TestLibvirt } from '../support/libvirt.js';
import { build, program, requireAll } from '../support/requirements.js';

const MIB = 1024 * 1024;
const SIZE = 16 * MIB;

describe('a dump that does not come to its end', () => {
  const chunkmount = new TestChunkmount();
  let libvirt: TestLibvirt;
  const vda = chunkmount.path('vda.raw');
  const dump = path.join(chunkmount.backupDirectory, 'mail01.dump');
  const partial = path.join(dump, 'mail01_vda.raw.gz.partial');
  /** A file system of 8 MiB, and one of 128 MiB. */
  const small = chunkmount.path('small');
  const larger = chunkmount.path('larger');
  let before: Record<string, string>;
  const args = (...more: string[]) => ['dump', '--vm=mail01', `--connect=${libvirt.uri}`, ...more];

  beforeAll(async () => {
    await requireAll(build, program('mkfs.ext4', 'e2fsprogs'), program('gzip'), program('zstd'));
    await mountNew(small, 8 * MIB);
    await mountNew(larger, 128 * MIB);
    libvirt = await TestLibvirt.start();
    fs.writeFileSync(vda, noise(SIZE, 1));
    await libvirt.define('mail01', [{ target: 'vda', path: vda, format: 'raw' }]);
  });

  /** The dump before, which must survive. */
  beforeEach(async () => {
    await chunkmount.succeed(...args('--compress=zstd'));
    before = filesIn(dump);
    expect(Object.keys(before)).toEqual(['mail01.sha256', 'mail01.xml', 'mail01_vda.raw.zst']);
  });

  /** Everything is as it was. */
  afterEach(async () => {
    expect(filesIn(dump)).toEqual(before);
    await checkSums(dump, 'mail01.sha256');
    expect(await imagesOf(libvirt, 'mail01')).toEqual([vda]);
    expect(fs.readdirSync(chunkmount.directory).filter((name) => name.includes('.cm-'))).toEqual([]);
    expect(fs.readdirSync(path.join(chunkmount.stateDirectory, 'sessions'))).toEqual([]);
  });

  afterAll(async () => {
    await libvirt?.close();
    await execa('umount', [small, larger], { reject: false });
    await chunkmount.close();
  });

  /** libvirtd has mounts of its own, which are those that are there when it starts. */
  async function mountNew(directory: string, size: number): Promise<void> {
    const image = `${directory}.ext4`;
    fs.writeFileSync(image, '');
    fs.truncateSync(image, size);
    await execa('mkfs.ext4', ['-q', '-m', '0', image]);
    fs.mkdirSync(directory);
    await execa('mount', ['-o', 'loop', image, directory]);
  }

  /** Starts a dump whose compressor never ends. In an object, because `await` would wait for the process itself. */
  async function stuck() {
    const PATH = programFirst(
      chunkmount.path('stuck'),
      'gzip',
      'echo begin; while kill -0 $PPID; do sleep 0.2; done',
    );
    const child = chunkmount.start(args('--compress=gzip'), { PATH });
    await eventually(async () => (fs.statSync(partial, { throwIfNoEntry: false })?.size ?? 0) > 0);
    return { child };
  }

  it.each([
    'exit 1',
    'head -c 1000000; exit 1',
    'head -c 1000000; kill -9 $$',
    'head -c 1000000',
    'cat; exit 1',
  ])('because the compressor does: %s', async (script) => {
    const PATH = programFirst(chunkmount.path('broken'), 'gzip', script);
    const { exitCode, stdout, stderr } = await chunkmount.run(args('--compress=gzip'), { PATH });
    expect(exitCode).toBe(1);
    expect(stdout).toBe('');
    expect(stderr).toContain('gzip');
  });

  it.each(['SIGINT', 'SIGTERM'] as const)('because of a %s', async (signal) => {
    const { child } = await stuck();
    const { sessions } = JSON.parse(await chunkmount.succeed('list', '--json'));
    expect(sessions).toMatchObject([{ name: 'mail01', state: 'working' }]);
    child.kill(signal);
    expect((await child).exitCode).toBe(signal === 'SIGINT' ? 130 : 143);
  });

  it.each(['mail01.sha256', 'mail01_vda.raw.zst.partial'])(
    'with a directory in the place of %s: the dump before is not replaced in part',
    async (name) => {
      const place = path.join(dump, name);
      const aside = `${place}.aside`;
      const there = fs.existsSync(place);
      if (there) fs.renameSync(place, aside);
      fs.mkdirSync(place);
      const { exitCode, stdout, stderr } = await chunkmount.run(args('--compress=zstd'));
      expect([exitCode, stdout], stderr).toEqual([1, '']);
      expect(stderr).toContain(`${place} is a directory, in the place of a file of the dump`);
      fs.rmdirSync(place);
      if (there) fs.renameSync(aside, place);
    },
  );

  it('because it was killed: cleanup removes what is left', async () => {
    const { child } = await stuck();
    child.kill('SIGKILL');
    await child;
    expect(fs.existsSync(partial)).toBe(true);
    const { sessions } = JSON.parse(await chunkmount.succeed('list', '--json'));
    expect(sessions).toMatchObject([{ name: 'mail01', state: 'incomplete' }]);
    await chunkmount.succeed('cleanup', '--vm=mail01');
  });

  it('because it was killed while QEMU converted: that ends with the cleanup', async () => {
    const script = '[ "$1" = convert ] || exec /usr/bin/qemu-img "$@"; for i in $(seq 100); do sleep 1; done';
    const PATH = programFirst(chunkmount.path('converting'), 'qemu-img', script);
    const child = chunkmount.start(args('--format=qcow2'), { PATH });
    const file = path.join(dump, 'mail01_vda.qcow2.partial');
    const converting = () => findProcesses((argv) => argv.at(-1) === file);
    await eventually(async () => converting().length > 0);
    child.kill('SIGKILL');
    await child;
    await chunkmount.succeed('cleanup', '--vm=mail01');
    expect(converting()).toEqual([]);
  });

  it('because the compressor is missing, which is known before anything is frozen', async () => {
    const { exitCode, stderr } = await chunkmount.run(args('--compress=plzip'), { PATH: '/nonexistent' });
    expect(exitCode).toBe(1);
    expect(stderr).toContain('plzip is not installed');
    expect(stderr).toContain('apt-get install plzip');
  });

  describe('because its file system is full', () => {
    const place = { CHUNKMOUNT_BACKUPDIR: small };

    afterEach(() => {
      expect(fs.readdirSync(small)).toEqual(['lost+found']);
    });

    it.each(['raw', 'qcow2'])('when that can be known before: %s', async (format) => {
      const { exitCode, stderr } = await chunkmount.run(args(`--format=${format}`), place);
      expect(exitCode).toBe(1);
      expect(stderr).toMatch(/there is no room for the dump of mail01 .* 16 MiB are needed/);
    });

    it('because the disk of the VM grows there, too', async () => {
      const disk = path.join(larger, 'disk.raw');
      fs.writeFileSync(disk, noise(MIB, 2));
      const domain = await libvirt.define('small', [{ target: 'vda', path: disk, format: 'raw' }]);
      try {
        const dumping = ['dump', '--vm=small', `--connect=${libvirt.uri}`, '--compress'];
        const { exitCode, stderr } = await chunkmount.run(dumping, { CHUNKMOUNT_BACKUPDIR: larger });
        expect(exitCode).toBe(1);
        expect(stderr).toMatch(
          /there is no room for the dump of small .* 512 MiB more for what the VM writes/,
        );
        expect(await imagesOf(libvirt, 'small')).toEqual([disk]);
      } finally {
        await libvirt.remove(domain);
        fs.rmSync(disk);
      }
    });

    it('when it is found out', async () => {
      const { exitCode, stderr } = await chunkmount.run(args('--compress=gzip'), place);
      expect(exitCode).toBe(1);
      expect(stderr).toMatch(/warning: .* 16 MiB are to be compressed/);
      expect(stderr).toMatch(/mail01_vda\.raw\.gz\.partial cannot be written: no space is left/);
    });
  });

  it('because something else is in its place', async () => {
    const backupdir = chunkmount.path('other');
    fs.mkdirSync(backupdir);
    fs.writeFileSync(path.join(backupdir, 'mail01.dump'), '');
    const { exitCode, stderr } = await chunkmount.run(args(`--backupdir=${backupdir}`));
    expect(exitCode).toBe(1);
    expect(stderr).toContain('mail01.dump is no directory');
  });

  it('because its image was written meanwhile', async () => {
    const image = chunkmount.path('written.raw');
    fs.writeFileSync(image, noise(MIB, 4));
    const script = `cp ${image} ${image}.copy; cat ${image}.copy >${image}; exec /usr/bin/gzip "$@"`;
    const PATH = programFirst(chunkmount.path('writing'), 'gzip', script);
    const dumping = ['dump', `--image=${image}`, '--name=written', '--compress'];
    const { exitCode, stderr } = await chunkmount.run(dumping, { PATH });
    expect([exitCode, stderr]).toEqual([1, expect.stringContaining('was written by another program')]);
    expect(fs.existsSync(path.join(chunkmount.backupDirectory, 'written.dump'))).toBe(false);
  });

  it('because a tree is shown in its place', async () => {
    const image = chunkmount.path('small.raw');
    fs.writeFileSync(image, noise(MIB, 3));
    await chunkmount.succeed('mount', `--image=${image}`, '--name=small.dump');
    const { exitCode, stderr } = await chunkmount.run(['dump', `--image=${image}`, '--name=small']);
    expect([exitCode, stderr]).toEqual([1, expect.stringContaining('small.dump is a mountpoint')]);
    await chunkmount.succeed('cleanup', '--name=small.dump');
  });
});
