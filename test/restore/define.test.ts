import * as fs from 'node:fs';
import * as path from 'node:path';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { run } from '../../src/host/exec.js';
import { loadDomain } from '../../src/libvirt/load-domain.js';
import { TestChunkmount } from '../support/chunkmount.js';
import { TestLibvirt } from '../support/libvirt.js';
import { build, program, requireAll } from '../support/requirements.js';
import { chunkFile, testBytes } from '../support/trees.js';
import { flipBit, KIB } from './demo-tree.js';
import { expectError } from './image-session.js';
import { CONTENT, holds, MAC, removeDomain, UUID, vmTree, vmXml } from './vm-tree.js';

let libvirt: TestLibvirt;
let chunkmount: TestChunkmount;
let count = 0;
let tree: string;
let storage: string;

beforeAll(async () => {
  await requireAll(build, program('qemu-img', 'qemu-utils'));
  libvirt = await TestLibvirt.start();
  chunkmount = new TestChunkmount();
});

afterAll(async () => {
  await chunkmount?.close();
  await libvirt?.close();
});

beforeEach(() => {
  count++;
  tree = chunkmount.path(`tree-${count}`);
  // A name that has to be escaped, in XML and elsewhere.
  storage = chunkmount.path(`images & 'more' <${count}>, x`);
  fs.mkdirSync(storage);
});

afterEach(async () => {
  for (const { name } of await libvirt.virsh.list()) await removeDomain(libvirt, name);
  fs.rmSync(storage, { recursive: true });
});

function define(...options: string[]) {
  const common = ['restore', tree, '--define', `--storage=${storage}`, `--connect=${libvirt.uri}`];
  return chunkmount.run([...common, ...options]);
}

async function defined(...options: string[]): Promise<string> {
  const result = await define(...options);
  expect(result, result.stderr).toMatchObject({ exitCode: 0 });
  return result.stdout;
}

async function names(): Promise<string[]> {
  return (await libvirt.virsh.list()).map(({ name }) => name).sort();
}

/** Each disk of a VM is on a file of its own in the storage, with the content of the backup. */
async function expectRestored(name: string, format: 'raw' | 'qcow2' = 'raw'): Promise<void> {
  const { disks } = await loadDomain(libvirt.virsh, name);
  for (const [target, content] of Object.entries(CONTENT)) {
    const disk = disks.find((one) => one.target === target);
    const file = path.join(storage, `${name}-${target}.${format}`);
    expect(disk).toMatchObject({ path: file, format, type: 'file' });
    expect(await holds(file, format, content, chunkmount.directory), target).toBe(true);
    expect(fs.statSync(file).mode & 0o077).toBe(0);
  }
}

describe('restore --define', () => {
  it('gives back the VM under its old name, with a new identity', async () => {
    vmTree(tree);
    expect(await defined()).toBe('mail01\n');
    const { uuid, state } = await loadDomain(libvirt.virsh, 'mail01');
    expect(state).toBe('shut off');
    expect(uuid).not.toBe(UUID);
    const xml = await libvirt.virsh.dumpXml(uuid, { inactive: true });
    expect(xml).not.toContain(MAC);
    expect(xml).toMatch(/<mac address='52:54:00:/);
    await expectRestored('mail01');
    expect(fs.readdirSync(storage).sort()).toEqual(['mail01-vda.raw', 'mail01-vdb.raw']);
  });

  it('--same-identity keeps UUID and MAC addresses, --start starts it, --json tells', async () => {
    vmTree(tree);
    const result = JSON.parse(await defined('--same-identity', '--start', '--json')) as object;
    expect(result).toMatchObject({
      tree,
      name: 'mail01',
      uuid: UUID,
      nvram: null,
      running: true,
      disks: [{ disk: 'vda', to: path.join(storage, 'mail01-vda.raw') }, { disk: 'vdb' }],
    });
    expect((await loadDomain(libvirt.virsh, 'mail01')).state).toBe('running');
    expect(await libvirt.virsh.dumpXml(UUID)).toContain(MAC);
    await expectRestored('mail01');
  });

  it('a second one runs beside the first; both are qcow2 here, and one has no network', async () => {
    vmTree(tree);
    await defined('--same-identity', '--format=qcow2', '--start');
    expect(
      await defined('--name=mail01-copy', '--format=qcow2', '--compress=zstd', '--start', '--no-network'),
    ).toBe('mail01-copy\n');
    expect(await names()).toEqual(['mail01', 'mail01-copy']);
    for (const name of await names()) {
      expect((await loadDomain(libvirt.virsh, name)).state).toBe('running');
      await expectRestored(name, 'qcow2');
    }
    const copy = await libvirt.virsh.find('mail01-copy');
    expect(await libvirt.virsh.dumpXml(copy.uuid)).toContain("<link state='down'/>");
  });

  it('brings NVRAM along', async () => {
    const loader = chunkmount.path('loader.fd');
    fs.writeFileSync(loader, Buffer.alloc(256 * KIB));
    const nvram = testBytes(256 * KIB, 31);
    vmTree(tree, {
      os: `<loader readonly='yes' type='pflash'>${loader}</loader><nvram>/nowhere/mail01_VARS.fd</nvram>`,
      more: '<features><acpi/></features>',
      extras: [{ file: 'nvram.fd', kind: 'nvram', content: nvram }],
    });
    await defined('--start');
    const file = path.join(storage, 'mail01_VARS.fd');
    expect((await loadDomain(libvirt.virsh, 'mail01')).nvram).toBe(file);
    expect(fs.readFileSync(file).equals(nvram)).toBe(true);
    expect(fs.statSync(file).mode & 0o077).toBe(0);
  });

  it('takes out what is not in the tree, empties drives, and says so', async () => {
    const medium = chunkmount.path('here.iso');
    fs.writeFileSync(medium, Buffer.alloc(64 * KIB));
    vmTree(tree, {
      devices: `<disk type='network' device='disk'><driver name='qemu' type='raw'/><source protocol='nbd' name='x'><host name='gone' port='1'/></source><target dev='vdc' bus='virtio'/></disk>
        <disk type='file' device='cdrom'><source file='/nowhere/install.iso'/><target dev='sda' bus='sata'/><readonly/></disk>
        <disk type='file' device='cdrom'><source file='${medium}'/><target dev='sdb' bus='sata'/><readonly/></disk>`,
    });
    const { exitCode, stderr } = await define('--start');
    expect(exitCode, stderr).toBe(0);
    expect(stderr).toContain('mail01: disk vdc is not in the tree, and is taken out');
    expect(stderr).toContain('mail01: the medium /nowhere/install.iso in drive sda is not on this host');
    expect(stderr).toContain(`mail01: the guest sees ${medium} of this host in drive sdb`);
    const { disks } = await loadDomain(libvirt.virsh, 'mail01');
    expect(disks.map(({ target, path: file }) => [target, file])).toEqual([
      ['vda', path.join(storage, 'mail01-vda.raw')],
      ['vdb', path.join(storage, 'mail01-vdb.raw')],
      ['sda', undefined],
      ['sdb', medium],
    ]);
  });

  it('says what reaches into the host', async () => {
    vmTree(tree, {
      more: `<qemu:commandline xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'><qemu:arg value='-name'/></qemu:commandline>`,
    });
    const { exitCode, stderr } = await define();
    expect(exitCode, stderr).toBe(0);
    expect(stderr).toContain('mail01: it gives QEMU arguments of its own: "-name"');
  });
});

describe('refuses before anything is written', () => {
  afterEach(() => {
    expect(fs.readdirSync(storage)).toEqual([]);
  });

  it.each([
    ['a name that is taken', ['--name=other'], /there is a VM called other already$/],
    ['its own name, taken', [], /there is a VM called mail01 already$/],
    ['a UUID that is taken', ['--name=new', '--same-identity'], /the VM mail01 has the UUID of the backup/],
    ['a name that is none', ['--name=../x'], /cannot be the name/],
  ])('%s', async (_, options, message) => {
    vmTree(tree);
    await libvirt.define('mail01', [], { start: false, uuid: UUID });
    await libvirt.define('other', [], { start: false });
    expect(expectError(await define(...options), 2).message).toMatch(message);
    expect(await names()).toEqual(['mail01', 'other']);
  });

  it.each([
    ['--to', ['--to=/x'], /--define does not take --to/],
    ['--disk', ['--disk=vda'], /--define does not take --disk/],
    ['--delta', ['--delta'], /--define does not take --delta/],
    ['--start and --resume', ['--start', '--resume'], /exclude each other/],
    ['compressed raw images', ['--compress'], /only qcow2 images can be compressed/],
    ['--resume without memory', ['--resume'], /has no memory of the VM/],
  ])('%s', async (_, options, message) => {
    vmTree(tree);
    expect(expectError(await define(...options), 2).message).toMatch(message);
  });

  it('options that need --define, and no place to restore to', async () => {
    vmTree(tree);
    const alone = await chunkmount.run(['restore', tree, `--to=${storage}`, '--name=x', '--no-network']);
    expect(expectError(alone, 2).message).toBe('restore --to does not take --name, --no-network');
    expect(expectError(await chunkmount.run(['restore', tree]), 2).hint).toContain('--to=PATH');
  });

  it('a storage that is no directory', async () => {
    vmTree(tree);
    expect(expectError(await define(`--storage=${storage}/none`), 2).message).toContain('does not exist');
    expect(expectError(await define(`--storage=${tree}/manifest.json`), 2).message).toContain(
      'is no directory',
    );
  });

  it('a libvirt that is not there', async () => {
    vmTree(tree);
    const { message } = expectError(await define('--connect=qemu:///system?socket=/nowhere'), 1);
    expect(message).toContain('cannot be reached');
  });

  it('a tree without XML, with another document, or with damaged NVRAM', async () => {
    vmTree(tree, { extras: [{ file: 'nvram.fd', kind: 'nvram', content: testBytes(1000) }] });
    const xml = path.join(tree, 'mail01.xml');
    fs.truncateSync(path.join(tree, 'nvram.fd'), 999);
    expect(expectError(await define(), 4).message).toContain('nvram.fd has 999 bytes instead of 1000');
    fs.writeFileSync(xml, '<network/>');
    expect(expectError(await define(), 4).message).toContain('mail01.xml');
    fs.rmSync(xml);
    expect(expectError(await define(), 4).message).toContain('mail01.xml is missing');
    const manifest = path.join(tree, 'manifest.json');
    fs.writeFileSync(manifest, fs.readFileSync(manifest, 'utf8').replace('"mail01.xml"', 'null'));
    expect(expectError(await define(), 2).message).toContain('has no domain XML');
  });

  it('XML of which libvirt would take more than was looked at', async () => {
    vmTree(tree);
    const xml = path.join(tree, 'mail01.xml');
    const more =
      "<devices><filesystem type='mount'><source dir='/'/><target dir='x'/></filesystem></devices>";
    fs.writeFileSync(xml, vmXml().replace('</domain>', `${more}</domain>`));
    expect(expectError(await define(), 4).message).toContain(
      'mail01.xml: the XML of a <domain> has more than',
    );
    expect(await names()).toEqual([]);
  });

  it('a file system that is too small', async () => {
    vmTree(tree);
    const small = chunkmount.path(`small-${count}`);
    fs.mkdirSync(small);
    await run('mount', ['-t', 'tmpfs', '-o', 'size=2M', 'tmpfs', small]);
    try {
      const { message } = expectError(await define(`--storage=${small}`), 1);
      expect(message).toMatch(/has [12] MiB left, and up to 4 are needed$/);
      expect(fs.readdirSync(small)).toEqual([]);
    } finally {
      await run('umount', [small]);
    }
  });
});

describe('existing files', () => {
  const old = () => path.join(storage, 'mail01-vdb.raw');

  it('are refused, and replaced with --force', async () => {
    vmTree(tree);
    fs.writeFileSync(old(), 'old', { mode: 0o600 });
    expect(expectError(await define(), 2).message).toBe(`${old()} exists`);
    expect(fs.readdirSync(storage)).toEqual(['mail01-vdb.raw']);
    await defined('--force');
    await expectRestored('mail01');
  });

  it('that belong to a VM are not replaced', async () => {
    vmTree(tree);
    fs.writeFileSync(old(), 'old');
    await libvirt.define('other', [{ target: 'vda', path: old(), format: 'raw' }], { start: false });
    expect(expectError(await define('--force'), 2).message).toBe(`${old()} belongs to the VM other`);
    expect(fs.readFileSync(old(), 'utf8')).toBe('old');
  });
});

describe('half-way', () => {
  it('a damaged chunk stops it; mended, it goes on with what is missing', async () => {
    vmTree(tree);
    const chunk = path.join(tree, chunkFile('vdb', 3));
    flipBit(chunk);
    expect(expectError(await define(), 4).message).toContain('vdb/000000/00000003 is corrupt');
    expect(await names()).toEqual([]);
    const vda = fs.statSync(path.join(storage, 'mail01-vda.raw')).ino;
    flipBit(chunk);
    const { exitCode, stderr } = await define();
    expect(exitCode, stderr).toBe(0);
    expect(stderr).toContain('vda has been restored to');
    expect(fs.statSync(path.join(storage, 'mail01-vda.raw')).ino).toBe(vda);
    await expectRestored('mail01');
    expect(fs.readdirSync(storage).sort()).toEqual(['mail01-vda.raw', 'mail01-vdb.raw']);
  });

  it('an image that somebody wrote to meanwhile is not taken for a finished one', async () => {
    vmTree(tree);
    const chunk = path.join(tree, chunkFile('vdb', 3));
    flipBit(chunk);
    await define();
    fs.appendFileSync(path.join(storage, 'mail01-vda.raw'), 'x');
    flipBit(chunk);
    expect(expectError(await define(), 2).message).toContain('mail01-vda.raw exists');
  });

  it('--keep-going defines it all the same, and exits with 4', async () => {
    vmTree(tree);
    flipBit(path.join(tree, chunkFile('vdb', 3)));
    const { exitCode, stdout, stderr } = await define('--keep-going');
    expect([exitCode, stdout]).toEqual([4, 'mail01\n']);
    expect(stderr).toContain('vdb/000000/00000003 is corrupt');
    expect(await names()).toEqual(['mail01']);
  });

  it('libvirt refuses the definition: the images stay, and it can be defined by hand', async () => {
    vmTree(tree, { more: "<cpu mode='custom'><model>no-such-model</model></cpu>" });
    const xml = path.join(tree, 'mail01.xml');
    fs.writeFileSync(
      xml,
      fs.readFileSync(xml, 'utf8').replace("machine='q35'", "machine='pc-of-the-future'"),
    );
    const { message, hint } = expectError(await define(), 1);
    expect(message).toMatch(/^the disks of mail01 are restored, but libvirt refuses its definition: /);
    const file = path.join(storage, 'mail01.xml');
    expect(hint).toContain(`virsh define ${file}`);
    expect(fs.statSync(file).mode & 0o077).toBe(0);
    const mended = fs
      .readFileSync(file, 'utf8')
      .replace('pc-of-the-future', 'q35')
      .replace(/<cpu.*<\/cpu>/s, '');
    fs.writeFileSync(file, mended);
    await libvirt.virsh.call('define', ['--file', file]);
    await expectRestored('mail01');
  });

  it('it does not start: it is defined, and that is said', async () => {
    vmTree(tree, { devices: "<interface type='bridge'><source bridge='cm-none'/></interface>" });
    const { message, hint } = expectError(await define('--start'), 1);
    expect(message).toMatch(/^mail01 is restored and defined, but does not start: /);
    expect(hint).toContain('virsh start mail01');
    await expectRestored('mail01');
  });
});

describe('--resume', () => {
  it('continues the VM from its memory, on its restored disks', async () => {
    const disks = Object.entries(CONTENT).map(([target, content]) => {
      const file = chunkmount.path(`original-${target}`);
      fs.writeFileSync(file, content);
      return { target, path: file, format: 'raw' };
    });
    const file = chunkmount.path('channel');
    const domain = await libvirt.define('mail01', disks, {
      uuid: UUID,
      devices: `<interface type='user'><mac address='${MAC}'/><model type='virtio'/></interface>
        <channel type='file'><source path='${file}'/><target type='virtio' name='x'/></channel>`,
    });
    const full = await libvirt.virsh.dumpXml(domain.uuid, { inactive: true });
    const xml = full.replace(/<channel type='file'>.*?<\/channel>/s, '');
    const state = chunkmount.path('saved');
    await libvirt.virsh.call('save', ['--domain', domain.uuid, '--file', state]);
    await libvirt.remove(domain);
    for (const disk of disks) fs.rmSync(disk.path);
    vmTree(tree, { extras: [{ file: 'mail01.state', kind: 'state', content: fs.readFileSync(state) }] });
    fs.writeFileSync(path.join(tree, 'mail01.xml'), xml);
    expect(expectError(await define('--resume', '--name=other'), 2).message).toContain('cannot be renamed');

    const { exitCode, stderr } = await define('--resume');
    expect(exitCode, stderr).toBe(0);
    // Only the definition in the memory has it.
    expect(stderr).toContain(`mail01: a channel device writes to ${file}`);
    const now = await loadDomain(libvirt.virsh, 'mail01');
    expect(now).toMatchObject({ uuid: UUID, state: 'running', persistent: true });
    await expectRestored('mail01');
    const commandLine = fs.readFileSync(`/proc/${libvirt.qemu(domain).pid}/cmdline`, 'utf8').split('\0');
    expect(commandLine).toContain('-incoming');
    expect(await libvirt.virsh.dumpXml(UUID)).toContain(MAC);
    expect(fs.readdirSync(storage).sort()).toEqual(['mail01-vda.raw', 'mail01-vdb.raw']);
  });

  it('a memory that cannot be read leaves the VM defined, without it', async () => {
    vmTree(tree, { extras: [{ file: 'mail01.state', kind: 'state', content: testBytes(100 * KIB) }] });
    const { message, hint } = expectError(await define('--resume'), 1);
    expect(message).toMatch(/^mail01 is restored and defined, but its memory is not: /);
    expect(hint).toContain('virsh start mail01');
    expect((await loadDomain(libvirt.virsh, 'mail01')).state).toBe('shut off');
    expect(fs.readdirSync(storage).sort()).toEqual(['mail01-vda.raw', 'mail01-vdb.raw']);
  });
});

it('the XML that these tests begin with is one that libvirt takes', async () => {
  const file = chunkmount.path('plain.xml');
  fs.writeFileSync(file, vmXml());
  await libvirt.virsh.call('define', ['--file', file, '--validate']);
});
