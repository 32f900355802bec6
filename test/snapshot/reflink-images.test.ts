import * as fs from 'node:fs';
import * as path from 'node:path';
import { afterEach, describe, expect, it } from 'vitest';
import { run } from '../../src/host/exec.js';
import type { Disk, Domain } from '../../src/libvirt/domain.js';
import { Virsh } from '../../src/libvirt/virsh.js';
import { Journal } from '../../src/session/journal.js';
import { undoAll } from '../../src/session/undo.js';
import type { Snapshot } from '../../src/snapshot/provider.js';
import { reflinkProvider } from '../../src/snapshot/reflink/provider.js';
import { isOpen, openFiles } from '../support/descriptors.js';
import { type FileSystemKind, TestFileSystem } from '../support/file-systems.js';
import { pathWithout } from '../support/path-without.js';
import { replaceInFs } from '../support/replaced-fs.js';
import { RecordingReporter } from '../support/snapshot-session.js';

const MIB = 1024 * 1024;

let fileSystem: TestFileSystem;

async function directoryOn(kind: FileSystemKind, options: Parameters<typeof TestFileSystem.make>[1] = {}) {
  fileSystem = await TestFileSystem.make(kind, options);
  return fileSystem.directory;
}

const realPath = process.env.PATH;

afterEach(async () => {
  process.env.PATH = realPath;
  await fileSystem?.close();
});

/** A VM that is off, of which nobody need know, with one disk. */
function domainOf(image: string, format: string): Domain {
  const disk: Disk = {
    target: 'vda',
    bus: 'virtio',
    device: 'disk',
    type: 'file',
    path: image,
    format,
    readonly: false,
    shareable: false,
    transient: false,
    encrypted: false,
    sliced: false,
    below: [],
    backing: undefined,
  };
  const [uuid, state] = ['00000000-0000-4000-8000-000000000001', 'shut off'] as const;
  return {
    name: 'off',
    uuid,
    state,
    active: false,
    persistent: true,
    disks: [disk],
    nvram: undefined,
    qemuUser: undefined,
  };
}

async function refusal(image: string, format = 'raw'): Promise<string | undefined> {
  const domain = domainOf(image, format);
  return reflinkProvider.refusal({ virsh: new Virsh(), domain }, domain.disks[0]!);
}

describe('refuses', () => {
  it('file systems whose files cannot share blocks', async () => {
    const directory = await directoryOn('ext4', { size: 100 * MIB });
    const image = path.join(directory, 'image');
    fs.writeFileSync(image, 'x');
    expect(await refusal(image)).toBe(
      `disk vda: ${image} is not on a file system whose files can share blocks (XFS, Btrfs)`,
    );
  });

  it('an XFS that was made without', async () => {
    const directory = await directoryOn('xfs', { mkfs: ['-m', 'reflink=0'] });
    const image = path.join(directory, 'image');
    fs.writeFileSync(image, 'x');
    expect(await refusal(image)).toMatch(
      /^disk vda: the file system of .* cannot share blocks between files/,
    );
    expect(fs.readdirSync(directory)).toEqual(['image']);
  });

  it('what is no file, or not there, or of another format, or on a file system that is nearly full', async () => {
    const directory = await directoryOn('xfs');
    const image = path.join(directory, 'image');
    expect(await refusal(image)).toContain('is not on this host');
    fs.writeFileSync(image, 'x');
    expect(await refusal(image)).toBeUndefined();
    expect(fs.readdirSync(directory)).toEqual(['image']);
    expect(await refusal('/dev/null')).toContain('/dev/null is no file but a device');
    expect(await refusal(image, 'vmdk')).toContain('a clone of the format vmdk is not supported');
    const { bavail, bsize } = fs.statfsSync(directory);
    await run('fallocate', ['--length', String(bavail * bsize - 40 * MIB), path.join(directory, 'ballast')]);
    expect(await refusal(image)).toMatch(/has only \d+ MiB left, and needs 64 MiB/);
  });

  it('nothing when cp cannot be asked, and leaves no file open', async () => {
    const directory = await directoryOn('xfs');
    const image = path.join(directory, 'image');
    fs.writeFileSync(image, 'x');
    expect(await refusal(image)).toBeUndefined();
    process.env.PATH = pathWithout(path.join(directory, 'bin'), 'cp').PATH;
    await expect(refusal(image)).rejects.toThrow('cp');
    // Those of the trial have no names.
    expect(openFiles().filter((file) => file.startsWith(directory))).toEqual([]);
  });

  it('a link to another file system', async () => {
    const directory = await directoryOn('xfs');
    const image = path.join(directory, 'image');
    const link = `${directory}.link`;
    fs.writeFileSync(image, 'x');
    fs.symlinkSync(image, link);
    expect(await refusal(link)).toContain('on another file system or subvolume than its directory');
    fs.rmSync(link);
  });
});

describe('an image', () => {
  const reporter = new RecordingReporter();
  const cloneOf = (image: string) => path.join(path.dirname(image), 'vda.cm-s1.clone');

  async function frozen(image: string, format: string, look: (snapshot: Snapshot) => void | Promise<void>) {
    const domain = domainOf(image, format);
    const journal = new Journal(path.join(path.dirname(image), 'journal.jsonl'));
    const request = { virsh: new Virsh(), domain, disks: domain.disks, sessionId: 's1' };
    try {
      const options = { quiesce: 'no' } as const;
      await look(await reflinkProvider.freeze({ ...request, options, journal, reporter }));
    } finally {
      expect(await undoAll({ journal, reporter }, reflinkProvider.undo, new Set())).toEqual([]);
      journal.close();
    }
  }

  it.each(['image', 'directory'])('in Btrfs without copy-on-write is cloned, by its %s', async (which) => {
    const directory = path.join(await directoryOn('btrfs'), 'images');
    fs.mkdirSync(directory);
    const image = path.join(directory, 'image');
    // One has it and the other has not: what is made in the directory is as the directory.
    if (which === 'directory') fs.writeFileSync(`${image}.with`, '');
    await run('chattr', ['+C', directory]);
    fs.writeFileSync(image, '');
    if (which === 'directory') fs.renameSync(`${image}.with`, image);
    else await run('chattr', ['-C', directory]);
    fs.writeFileSync(image, Buffer.alloc(MIB, 7));
    await frozen(image, 'raw', ({ disks }) => {
      const clone = disks[0]!.image.path;
      expect(fs.readFileSync(clone).equals(fs.readFileSync(image))).toBe(true);
      expect(fs.statSync(clone).mode & 0o777).toBe(0o400);
      expect([isOpen(image), isOpen(clone)]).toEqual([false, false]);
    });
  });

  it("is not cloned into a file of somebody else's, not even an empty one", async () => {
    const image = path.join(await directoryOn('xfs'), 'image');
    fs.writeFileSync(image, Buffer.alloc(MIB, 7));
    fs.writeFileSync(cloneOf(image), '');
    await expect(frozen(image, 'raw', () => {})).rejects.toThrow(/clone cannot be made: EEXIST/);
    expect(fs.statSync(cloneOf(image)).size).toBe(0);
    expect(isOpen(image)).toBe(false);
  });

  it('whose clone does not get durable leaves none, and no file open', async () => {
    const directory = await directoryOn('xfs');
    const image = path.join(directory, 'image');
    fs.writeFileSync(image, Buffer.alloc(MIB, 7));
    const fsync = fs.fsyncSync;
    replaceInFs('fsyncSync', (fd: number) => {
      if (fs.readlinkSync(`/proc/self/fd/${fd}`) === directory && fs.existsSync(cloneOf(image)))
        throw new Error('EIO: the disk is broken');
      fsync(fd);
    });
    await expect(frozen(image, 'raw', () => {})).rejects.toThrow('the disk is broken');
    expect(fs.existsSync(cloneOf(image))).toBe(false);
    expect([isOpen(image), isOpen(cloneOf(image))]).toEqual([false, false]);
  });

  it('whose clone cannot be made like it leaves none', async () => {
    const directory = await directoryOn('btrfs');
    const image = path.join(directory, 'image');
    fs.writeFileSync(image, Buffer.alloc(MIB, 7));
    process.env.PATH = pathWithout(path.join(directory, 'bin'), 'lsattr').PATH;
    await expect(frozen(image, 'raw', () => {})).rejects.toThrow('lsattr');
    expect(fs.existsSync(cloneOf(image))).toBe(false);
  });

  it('of a VM that is off cannot be written while it is cloned', async () => {
    const directory = await directoryOn('xfs');
    const image = path.join(directory, 'image');
    fs.writeFileSync(image, Buffer.alloc(MIB, 7));
    const { PATH } = pathWithout(path.join(directory, 'bin'), 'cp');
    const script = `#!/bin/sh
PATH='${realPath}'
qemu-io -f raw -c 'write 0 512' '${image}' >'${directory}/said' 2>&1
exec cp "$@"
`;
    fs.writeFileSync(path.join(PATH, 'cp'), script, { mode: 0o755 });
    process.env.PATH = PATH;
    await frozen(image, 'raw', ({ disks }) => {
      expect(fs.readFileSync(path.join(directory, 'said'), 'utf8')).toContain('lock');
      expect(fs.readFileSync(disks[0]!.image.path)[0]).toBe(7);
    });
  });

  it('keeps the backing file it names, which nobody can write meanwhile; but its data file would not be frozen', async () => {
    const directory = await directoryOn('xfs');
    const create = ['create', '-q', '-f', 'qcow2'];
    await run('qemu-img', ['create', '-q', '-f', 'raw', 'base.raw', '1M'], { cwd: directory });
    await run('qemu-img', [...create, '-F', 'raw', '-b', 'base.raw', 'image.qcow2'], { cwd: directory });
    const write = ['-f', 'raw', '-c', 'write 0 512', path.join(directory, 'base.raw')];
    await frozen(path.join(directory, 'image.qcow2'), 'qcow2', async ({ disks }) => {
      const args = ['info', '--output=json', disks[0]!.image.path];
      const info = JSON.parse((await run('qemu-img', args)).stdout);
      expect(info['full-backing-filename']).toBe(path.join(directory, 'base.raw'));
      await expect(run('qemu-io', write)).rejects.toThrow('lock');
    });
    await run('qemu-io', write);

    const dataFile = path.join(directory, 'data.raw');
    await run('qemu-img', [...create, '-o', `data_file=${dataFile}`, 'split.qcow2', '1M'], {
      cwd: directory,
    });
    await expect(frozen(path.join(directory, 'split.qcow2'), 'qcow2', () => {})).rejects.toThrow(
      `disk vda: its data is in ${dataFile}`,
    );
    expect(fs.readdirSync(directory).filter((name) => name.endsWith('.clone'))).toEqual([]);
  });
});
