import * as fs from 'node:fs';
import * as path from 'node:path';
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest';
import { run } from '../../src/host/exec.js';
import { loadDomain } from '../../src/libvirt/load-domain.js';
import { CLI, TestChunkmount } from '../support/chunkmount.js';
import { makeImage, type TestDomain, TestLibvirt } from '../support/libvirt.js';
import { pathWithout } from '../support/path-without.js';
import { fuseDevice, program, requireAll, root } from '../support/requirements.js';
import { expectError, toldError, traces } from './expectations.js';

const MIB = 1024 * 1024;
const NOBODY = 65534;

const CDROM = `<disk type='file' device='cdrom'><driver name='qemu' type='raw'/><target dev='sda' bus='sata'/><readonly/></disk>`;
const floppy = (file: string) =>
  `<disk type='file' device='floppy'><driver name='qemu' type='raw'/><source file='${file}'/><target dev='fda' bus='fdc'/></disk>`;
const NETWORK = `<disk type='network' device='disk'><driver name='qemu' type='raw'/><source protocol='nbd' name='x'><host name='127.0.0.1' port='1'/></source><target dev='vdb' bus='virtio'/></disk>`;

/** What cannot work says why and what to do, leaves nothing behind, and the VM goes on with its own disks. */
describe('with VMs, bad input', () => {
  const chunkmount = new TestChunkmount();
  let libvirt: TestLibvirt;
  let mail01: TestDomain;
  const vda = chunkmount.path('vda.qcow2');
  const small = chunkmount.path('small');
  const fewFiles = chunkmount.path('few-files');
  const filled = chunkmount.path('filled');
  const uri = () => `--connect=${libvirt.uri}`;

  beforeAll(async () => {
    await requireAll(root, fuseDevice, program('setpriv', 'util-linux'), program('qemu-img', 'qemu-utils'));
    // Before libvirtd, which sees what is mounted when it starts.
    await tmpfs(small, 'size=20m');
    await tmpfs(fewFiles, 'size=80m,nr_inodes=2');
    await tmpfs(filled, 'size=80m');
    libvirt = await TestLibvirt.start();
    await makeImage(vda, 'qcow2', 4 * MIB, 0x11);
    for (const name of ['vdb.img', 'floppy.img', 'spaces.img', 'net.img'])
      await makeImage(chunkmount.path(name), 'raw', 1_474_560);
    const disks = [
      { target: 'vda', path: vda, format: 'qcow2' },
      { target: 'vdb', path: chunkmount.path('vdb.img'), format: 'raw' },
    ];
    mail01 = await libvirt.define('mail01', disks, {
      devices: CDROM + floppy(chunkmount.path('floppy.img')),
    });
  });

  afterEach(async () => {
    for (const images of [chunkmount.directory, small, fewFiles, filled])
      expect(traces(chunkmount, images)).toEqual([]);
    expect(await sources()).toEqual([vda, chunkmount.path('vdb.img')]);
    expect(await libvirt.virsh.state(mail01.uuid)).toMatchObject({ state: 'running' });
  });

  afterAll(async () => {
    await libvirt?.close();
    for (const directory of [small, fewFiles, filled]) await run('umount', [directory]);
    await chunkmount.close();
  });

  async function tmpfs(directory: string, options: string): Promise<void> {
    fs.mkdirSync(directory);
    await run('mount', ['-t', 'tmpfs', '-o', options, 'tmpfs', directory]);
  }

  async function sources(): Promise<(string | undefined)[]> {
    const { disks } = await loadDomain(libvirt.virsh, 'mail01');
    return disks.filter(({ device }) => device === 'disk').map((disk) => disk.path);
  }

  const mount = (name: string, ...options: string[]) => chunkmount.run([`--vm=${name}`, uri(), ...options]);

  it.each([['mount'], ['dump'], ['run', '--', 'true']])(
    '%s refuses a VM that nobody knows',
    async (verb, ...rest) => {
      const told = expectError(await chunkmount.run([verb!, '--vm=nosuch', uri(), ...rest]), 2);
      expect(told.message).toBe('there is no VM called "nosuch"');
      expect(told.hint).toMatch(/^see them all: virsh --connect '.*' list --all$/);
    },
  );

  it('skips cdroms and floppies with a notice, and refuses a second session', async () => {
    const { exitCode, stdout, stderr } = await mount('mail01');
    expect({ exitCode, stdout }).toEqual({ exitCode: 0, stdout: `${chunkmount.tree('mail01')}\n` });
    expect(stderr).toBe(
      'chunkmount: mail01: cdrom sda is skipped\nchunkmount: mail01: floppy fda is skipped\n',
    );
    const told = expectError(await mount('mail01'), 3);
    expect(told.message).toMatch(/^mail01 has a session already: it is mounted at .*\/backup\/mail01 since /);
    expect(told.hint).toBe('end it first: chunkmount cleanup --vm=mail01');
    expect(fs.readdirSync(chunkmount.tree('mail01'))).toEqual(
      expect.arrayContaining(['vda', 'vda.xxh64', 'vdb', 'vdb.xxh64']),
    );
    await chunkmount.succeed('cleanup', '--vm=mail01');
  });

  it('refuses to back up no disk, and to exclude what is not there', async () => {
    const none = expectError(await mount('mail01', '--exclude=vda,vdb,sda'), 1);
    expect(none).toMatchObject({
      message: 'mail01 has no disk to back up',
      hint: 'exclude fewer of its disks',
    });
    const unknown = expectError(await mount('mail01', '--exclude=vdc'), 2);
    expect(unknown).toEqual({
      message: 'mail01 has no disk vdc to exclude',
      hint: 'its disks are vda, vdb, sda, fda',
    });
  });

  it('refuses a network disk with the reason, and takes the other disks without it', async () => {
    const disks = [{ target: 'vda', path: chunkmount.path('net.img'), format: 'raw' }];
    const domain = await libvirt.define('netsrv', disks, { start: false, devices: NETWORK });
    const told = expectError(await mount('netsrv'), 1);
    expect(told).toEqual({
      message:
        'disk vdb of netsrv cannot be backed up: its image is on the network, not a file or block device of this host',
      hint: 'back up the others: --exclude=vdb',
    });
    expect((await mount('netsrv', '--exclude=vdb')).exitCode).toBe(0);
    await chunkmount.succeed('cleanup', '--vm=netsrv');
    await libvirt.remove(domain);
  });

  it('refuses a VM whose image is gone or is not what its definition says', async () => {
    const image = chunkmount.path('lost.qcow2');
    const disks = [{ target: 'vda', path: image, format: 'qcow2' }];
    const domain = await libvirt.define('lost', disks, { start: false });
    expect(expectError(await mount('lost'), 1).message).toContain(image);
    fs.writeFileSync(image, Buffer.alloc(MIB, 1));
    expect(expectError(await mount('lost'), 1).message).toContain(`${image} cannot be read as qcow2`);
    await libvirt.remove(domain);
  });

  describe('where no overlay can be made', () => {
    const overlays = (directory: string) => mount('mail01', `--overlay-dir=${directory}`);

    /** The guest writes what nobody else did yet, and reads it. */
    let writes = 0;
    afterEach(async () => {
      await libvirt.guestWrite(mail01, 'vda', { offset: MIB, length: 4096, pattern: 0x60 + ++writes });
    });

    it('says that there is no such directory', async () => {
      const nowhere = chunkmount.path('nowhere');
      expect(expectError(await overlays(nowhere), 1).message).toContain(
        `no overlay can be made in ${nowhere}`,
      );
    });

    it('says that there is too little space', async () => {
      const told = expectError(await overlays(small), 1);
      expect(told.message).toMatch(/small has only \d+ MiB left for an overlay$/);
    });

    it('says that the file system is full when it takes the overlay of one disk and not that of the next', async () => {
      const told = expectError(await overlays(fewFiles), 1);
      expect(told.message).toMatch(/the overlay .*\/few-files\/vdb\.cm-.*\.qcow2 cannot be made: ENOSPC/);
    });

    it('undoes what was begun when the file system becomes full before libvirt writes to it', async () => {
      const bin = chunkmount.path('bin');
      fs.mkdirSync(bin);
      const script = `#!/bin/sh\ncase " $* " in *' snapshot-create '*) cat /dev/zero >'${filled}/zeros' 2>/dev/null;; esac\nPATH=\${PATH#*:} exec virsh "$@"\n`;
      fs.writeFileSync(path.join(bin, 'virsh'), script, { mode: 0o755 });
      const args = ['--vm=mail01', uri(), `--overlay-dir=${filled}`];
      const told = expectError(await chunkmount.run(args, { PATH: `${bin}:${process.env.PATH}` }), 1);
      expect(told.message).toMatch(/No space left on device/);
      fs.rmSync(path.join(filled, 'zeros'));
    });
  });

  it('has a result for each VM when some have names that cannot be those of trees', async () => {
    const names = ['my vm', '..mail01', '-x', 'x'.repeat(200)];
    const disks = [{ target: 'vda', path: chunkmount.path('spaces.img'), format: 'raw' }];
    const odd: TestDomain[] = [];
    for (const name of names) odd.push(await libvirt.define(name, disks, { start: name === 'my vm' }));
    for (const [all, failed] of [
      ['--all-running', ['my vm']],
      ['--vm=all', names],
    ] as const) {
      const { exitCode, stdout, stderr } = await chunkmount.run(['--json', all, uri()]);
      expect(exitCode, stderr).toBe(5);
      expect(toldError(stderr).message).toMatch(
        new RegExp(`^${failed.length} of ${failed.length + 1} failed: `),
      );
      const result = JSON.parse(stdout);
      expect(result.mounted).toMatchObject([{ name: 'mail01', mountpoint: chunkmount.tree('mail01') }]);
      expect(result.failed.map(({ name }: { name: string }) => name).sort()).toEqual([...failed].sort());
      for (const { name, error, hint } of result.failed) {
        expect(error).toContain(`${JSON.stringify(name)} cannot be the name of a tree`);
        expect(hint).toContain('virsh domrename');
      }
      expect(fs.readdirSync(chunkmount.backupDirectory)).toEqual(['mail01']);
      for (const kind of ['sessions', 'index'])
        expect(fs.readdirSync(path.join(chunkmount.stateDirectory, kind))).not.toContain('my vm');
      await chunkmount.succeed('cleanup', '--vm=all');
    }
    expectError(await mount('my vm'), 2);
    for (const domain of odd) await libvirt.remove(domain);
  });

  describe('without virsh', () => {
    const env = () => pathWithout(fs.mkdtempSync(chunkmount.path('path-')), 'virsh');

    it('says what to install', async () => {
      const told = expectError(await chunkmount.run(['--vm=mail01', uri()], env()), 1);
      expect(told).toEqual({
        message: 'virsh is not installed',
        hint: 'install it: apt-get install libvirt-clients',
      });
    });

    it('leaves a session to the next cleanup', async () => {
      await chunkmount.succeed('--vm=mail01', uri());
      const told = expectError(await chunkmount.run(['cleanup', '--vm=mail01'], env()), 1);
      expect(told.message).toMatch(/virsh is not installed/);
      expect(await chunkmount.succeed('list')).toMatch(/mail01 +incomplete/);
      await chunkmount.succeed('cleanup', '--vm=mail01');
    });
  });

  it('says so when too many files are open, and leaves no more than cleanup can undo', async () => {
    // How many it takes for what is another matter with each Node.js.
    for (const limit of [24, 30, 32]) {
      const limited = [`--nofile=${limit}`, '--', process.execPath, CLI, '--vm=mail01', uri()];
      const { exitCode, stderr } = await run('prlimit', limited, { env: chunkmount.env, accept: [1] });
      if (exitCode === 1) expect(toldError(stderr).message).toMatch(/EMFILE/);
      expect(stderr).not.toMatch(/should not happen|\n {4}at /);
      await chunkmount.succeed('cleanup', '--all');
    }
  });

  it('says so when the daemon has too many files open', async () => {
    const layers = [chunkmount.path('layer0.qcow2')];
    await run('qemu-img', ['create', '-q', '-f', 'qcow2', layers[0]!, '64M']);
    for (let i = 1; i <= 50; i++) {
      const [layer, below] = [chunkmount.path(`layer${i}.qcow2`), layers[i - 1]!];
      await run('qemu-img', ['create', '-q', '-f', 'qcow2', '-b', below, '-F', 'qcow2', layer]);
      await run('qemu-io', ['-c', `write ${i}M 64k`, layer]);
      layers.push(layer);
    }
    const limited = ['--nofile=64', '--', process.execPath, CLI, `--image=${layers.at(-1)}`, '--name=deep'];
    const { stderr } = await run('prlimit', limited, { env: chunkmount.env, accept: [1] });
    const told = toldError(stderr);
    expect(told.message).toMatch(/^the image file .* cannot be opened: EMFILE/);
    expect(told.hint).toMatch(/^raise the limit of open files: ulimit -n/);
  });

  it('has no more to say when many programs run at once', async () => {
    const images = Array.from({ length: 30 }, (_, i) => chunkmount.path(`many${i}.raw`));
    for (const image of images) fs.writeFileSync(image, Buffer.alloc(4096, 1));
    const mounted = await chunkmount.run([`--image=${images}`, '--name=many']);
    expect(mounted).toMatchObject({ exitCode: 0, stderr: '' });
    await chunkmount.succeed('cleanup', '--name=many');
  });

  describe('without root', () => {
    const asNobody = async (...args: string[]) => {
      const user = [`--reuid=${NOBODY}`, `--regid=${NOBODY}`, '--clear-groups'];
      // The checkout may lie in root's home.
      const mayRead = ['--inh-caps=+dac_read_search', '--ambient-caps=+dac_read_search'];
      return run('setpriv', [...user, ...mayRead, '--', process.execPath, CLI, ...args], {
        env: chunkmount.env,
        accept: [1, 2, 3, 4, 5],
        cwd: '/',
      });
    };

    it('backs up no VM', async () => {
      const told = expectError(await asNobody('--vm=mail01', uri()), 1);
      expect(told.message).toBe('backing up a VM of libvirt takes root: its disks and snapshots do');
      expect(told.hint).toMatch(/sudo/);
    });

    it("ends none of root's sessions", async () => {
      await chunkmount.succeed('--vm=mail01', uri());
      for (const args of [
        ['cleanup', '--vm=mail01'],
        ['cleanup', '--all'],
        ['unlock', '--vm=mail01'],
      ])
        expect(expectError(await asNobody(...args), 1).hint).toMatch(/root/);
      expect(fs.existsSync(path.join(chunkmount.tree('mail01'), 'manifest.json'))).toBe(true);
      await chunkmount.succeed('cleanup', '--vm=mail01');
    });
  });

  it.each([['mount'], ['dump'], ['run', '--', 'true']])(
    '%s says that libvirt is not there',
    async (verb, ...rest) => {
      for (const vm of ['--vm=mail01', '--vm=all', '--all-running']) {
        const nowhere = `qemu:///system?socket=${chunkmount.path('nosuch')}`;
        const told = expectError(await chunkmount.run([verb!, vm, `--connect=${nowhere}`, ...rest]), 1);
        expect(told.message).toContain(`libvirt at ${nowhere} cannot be reached`);
        expect(told.hint).toMatch(/is libvirtd running/);
      }
    },
  );

  it('leaves a session to the next cleanup when libvirtd has stopped', async () => {
    await chunkmount.succeed('--vm=mail01', uri());
    await libvirt.stopDaemon();
    const told = expectError(await chunkmount.run(['cleanup', '--vm=mail01']), 1);
    expect(told.message).toMatch(/cannot be reached/);
    await libvirt.startDaemon();
    await chunkmount.succeed('cleanup', '--vm=mail01');
  });
});
