import * as fs from 'node:fs';
import * as os from 'node:os';
import * as path from 'node:path';
import { afterEach, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { run } from '../../src/host/exec.js';
import { identify, signalProcess, waitForEnd } from '../../src/host/process-identity.js';
import {
  deviceMapper,
  fuseDevice,
  libvirt,
  libvirtUri,
  program,
  requireAll,
  root,
} from '../support/requirements.js';

// The volume group that scripts/lvm-vm makes.
const VG = 'cmtest';
const MIB = 1024 * 1024;
// The machine is slow, and libvirt asks every emulator what it can do when the first domain is defined.
const timeoutMs = 180_000;

beforeAll(() =>
  requireAll(
    root,
    deviceMapper,
    fuseDevice,
    libvirt,
    program('lvs', 'lvm2'),
    program('thin_delta', 'thin-provisioning-tools'),
    program('qemu-storage-daemon', 'qemu-system-common'),
    program('losetup', 'mount'),
  ),
);

let directory: string;
beforeEach(() => {
  directory = fs.mkdtempSync(path.join(os.tmpdir(), 'cm-harness-'));
});
afterEach(async () => {
  await run('lvremove', ['--quiet', '--yes', VG]);
  fs.rmSync(directory, { recursive: true, force: true });
});

/** Overwrites the first MiB of a device, past the page cache of anybody else. */
function write(device: string, byte: number): void {
  const fd = fs.openSync(device, 'r+');
  try {
    fs.writeSync(fd, Buffer.alloc(MIB, byte), 0, MIB, 0);
    fs.fsyncSync(fd);
  } finally {
    fs.closeSync(fd);
  }
}

/** The byte that the first MiB of a file or device is full of; undefined if it is not full of one. */
function content(file: string): number | undefined {
  const fd = fs.openSync(file, 'r');
  try {
    const data = Buffer.alloc(MIB);
    fs.readSync(fd, data, 0, MIB, 0);
    return data.equals(Buffer.alloc(MIB, data[0])) ? data[0] : undefined;
  } finally {
    fs.closeSync(fd);
  }
}

async function volumes(): Promise<string[]> {
  const { stdout } = await run('lvs', ['--noheadings', '--options', 'lv_name', VG]);
  return stdout.split('\n').flatMap((line) => line.trim() || []);
}

async function makeVolume(name: string): Promise<string> {
  await run('lvcreate', ['--quiet', '--yes', '-L', '64M', '-n', name, VG]);
  return `/dev/${VG}/${name}`;
}

async function makeThinVolume(pool: string, name: string): Promise<string> {
  await run('lvcreate', ['--quiet', '--yes', '--type', 'thin-pool', '-L', '128M', '-n', pool, VG]);
  await run('lvcreate', ['--quiet', '--yes', '-V', '64M', '-n', name, '--thinpool', pool, VG]);
  return `/dev/${VG}/${name}`;
}

describe('the machine of scripts/lvm-vm', () => {
  test.each([
    ['thick', makeVolume, ['-c', '64k', '-L', '32M']],
    ['thin', (name: string) => makeThinVolume('pool', name), ['-kn', '-ay']],
  ] as const)('makes and removes a %s snapshot', async (_kind, make, options) => {
    const origin = await make('origin');
    write(origin, 1);
    await run('lvcreate', ['--quiet', '-s', '-pr', ...options, '-n', 'frozen', `${VG}/origin`]);
    write(origin, 2);
    expect(content(`/dev/${VG}/frozen`)).toBe(1);
    expect(content(origin)).toBe(2);
    expect(await volumes()).toContain('frozen');
    await run('lvremove', ['--quiet', '--yes', `${VG}/frozen`]);
    expect(await volumes()).not.toContain('frozen');
    expect(fs.existsSync(`/dev/${VG}/frozen`)).toBe(false);
  });

  test('mounts FUSE file systems', async () => {
    const volume = await makeVolume('shown');
    write(volume, 3);
    const view = path.join(directory, 'view');
    const pidFile = path.join(directory, 'pid');
    fs.writeFileSync(view, '');
    await run('qemu-storage-daemon', [
      '--daemonize',
      ...['--pidfile', pidFile],
      ...['--blockdev', `driver=host_device,node-name=disk,filename=${volume},read-only=on`],
      ...['--export', `type=fuse,id=view,node-name=disk,mountpoint=${view}`],
    ]);
    const daemon = identify(Number(fs.readFileSync(pidFile, 'utf8')))!;
    try {
      expect(fs.statSync(view).size).toBe(64 * MIB);
      expect(content(view)).toBe(3);
    } finally {
      signalProcess(daemon, 'SIGTERM');
      expect(await waitForEnd(daemon, 20_000)).toBe(true);
    }
    expect(fs.statSync(view).size).toBe(0);
  });

  test('has loop devices', async () => {
    const file = path.join(directory, 'image');
    fs.writeFileSync(file, Buffer.alloc(MIB, 4));
    const { stdout } = await run('losetup', ['--find', '--show', file]);
    expect(content(stdout.trim())).toBe(4);
    await run('losetup', ['--detach', stdout.trim()]);
  });

  test('starts and stops a domain whose disk is an LV', async () => {
    const volume = await makeVolume('vda');
    const virsh = (...args: string[]) => run('virsh', ['--connect', libvirtUri(), ...args], { timeoutMs });
    const xml = `<domain type='qemu'><name>harness</name><memory unit='MiB'>16</memory>
<os><type arch='x86_64'>hvm</type></os><devices><disk type='block' device='disk'>
<driver name='qemu' type='raw'/><source dev='${volume}'/><target dev='vda' bus='virtio'/></disk></devices></domain>`;
    fs.writeFileSync(path.join(directory, 'xml'), xml);
    await virsh('define', path.join(directory, 'xml'));
    await virsh('start', 'harness');
    expect((await virsh('domstate', 'harness')).stdout.trim()).toBe('running');
    expect((await virsh('domblklist', 'harness')).stdout).toContain(volume);
    await virsh('destroy', 'harness');
    await virsh('undefine', 'harness');
    expect((await virsh('list', '--all', '--name')).stdout.trim()).toBe('');
  });
});
