import * as fs from 'node:fs';
import * as path from 'node:path';
import { execa } from 'execa';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { findProcesses } from '../../src/host/process-list.js';
import { TestChunkmount } from '../support/chunkmount.js';
import { loopDevices, withLoopDevice } from '../support/images.js';
import { makeImage, TestLibvirt } from '../support/libvirt.js';
import { fuseDevice, program, requireAll, root } from '../support/requirements.js';
import { eventually, traces } from './expectations.js';

interface Check {
  readonly name: string;
  readonly state: string;
  readonly detail: string;
  readonly need?: string;
  readonly fix?: string;
  readonly free?: number;
}

/** What doctor finds out beyond programs and directories; those are in list-unlock-doctor.test.ts. */
describe('doctor', () => {
  const chunkmount = new TestChunkmount();
  const bin = chunkmount.path('bin');
  let libvirt: TestLibvirt;

  beforeAll(async () => {
    await requireAll(root, fuseDevice, loopDevices, program('qemu-img', 'qemu-utils'));
    fs.mkdirSync(bin);
    libvirt = await TestLibvirt.start();
    const [vda, odd] = [chunkmount.path('vda.qcow2'), chunkmount.path('oddly-named')];
    await makeImage(vda, 'qcow2', 1024 * 1024);
    await makeImage(odd, 'raw', 4096);
    await libvirt.define('mail01', [{ target: 'vda', path: vda, format: 'qcow2' }]);
    await libvirt.define('odd', [{ target: 'vda', path: odd, format: 'raw' }], { start: false });
  });

  afterAll(async () => {
    await chunkmount.close();
    await libvirt?.close();
  });

  async function checks(args: readonly string[], env: Readonly<Record<string, string>> = {}) {
    const { stdout } = await chunkmount.run(['doctor', '--json', `--connect=${libvirt.uri}`, ...args], env);
    const found = (JSON.parse(stdout) as { checks: Check[] }).checks;
    return new Map(found.map((check) => [check.name, check]));
  }

  /** A real program of that name, first on PATH, whose output another one changes. */
  function changed(name: string, filter: string): { PATH: string } {
    const script = `#!/bin/sh\nPATH=\${PATH#*:}\n${name} "$@" | ${filter}\n`;
    fs.writeFileSync(path.join(bin, name), script, { mode: 0o755 });
    return { PATH: `${bin}:${process.env.PATH}` };
  }

  it('looks at the room for overlays, and at the guest agent of VMs that run', async () => {
    const found = await checks([]);
    for (const name of ['mail01: overlays', 'odd: overlays']) {
      expect(found.get(name)).toMatchObject({ state: 'ok', detail: `in ${chunkmount.directory}` });
      expect(found.get(name)!.free).toBeGreaterThan(0);
    }
    expect(found.get('confinement of QEMU')).toMatchObject({ state: 'ok', detail: 'none' });
    expect(found.get('mail01: guest agent')).toMatchObject({
      state: 'poor',
      detail: 'the VM has no channel for it',
    });
    expect(found.has('odd: guest agent')).toBe(false);
    expect([...(await checks(['--vm=odd'])).keys()].filter((name) => /^(mail01|odd)/.test(name))).toEqual([
      'odd: overlays',
    ]);
  });

  async function mend(fix: string | undefined): Promise<void> {
    await execa('sh', ['-c', fix!], { env: { LIBVIRT_DEFAULT_URI: libvirt.uri } });
  }

  /** What doctor says is missing for a VM, which a backup must refuse with `exitCode` then. */
  async function missing(vm: string, exitCode: number): Promise<Check[]> {
    const result = await chunkmount.run(['doctor', `--vm=${vm}`, '--json', `--connect=${libvirt.uri}`]);
    const all = (JSON.parse(result.stdout) as { checks: Check[] }).checks;
    const found = all.filter((check) => check.state === 'missing' && check.name.startsWith(vm));
    const told = found.map(({ name }) => name).join(', ');
    expect(result.stderr, vm).toContain(`chunkmount: error: missing: ${told}\n`);
    for (const { need, fix } of found) expect([need, fix]).toEqual([expect.any(String), expect.any(String)]);
    const mount = await chunkmount.run([`--vm=${vm}`, `--connect=${libvirt.uri}`]);
    expect([result.exitCode, mount.exitCode], mount.stderr).toEqual([1, exitCode]);
    return found;
  }

  it('names each disk that a backup refuses, and a VM that has none', async () => {
    const image = chunkmount.path('shared.img');
    await makeImage(image, 'raw', 4096);
    const shared = { target: 'vda', path: image, format: 'raw', extra: '<shareable/>' };
    const nbd = `<disk type='network' device='disk'><driver name='qemu' type='raw'/><source protocol='nbd' name='x'><host
name='127.0.0.1' port='9'/></source><target dev='vdb' bus='virtio'/></disk>`;
    const good = { target: 'vdc', path: image, format: 'raw' };
    const drive = `<disk type='file' device='cdrom'><target dev='sda' bus='sata'/></disk>`;
    await libvirt.define('sh', [shared], { start: false, devices: nbd });
    await libvirt.define('sh2', [shared, good], { start: false });
    await libvirt.define('diskless', [], { start: false, devices: drive });
    const nothing = 'none of its disks is left: virsh domblklist --details sh';
    expect(await missing('sh', 1)).toMatchObject([
      { name: 'sh: disk vda', detail: expect.stringContaining('it is shared with other VMs'), fix: nothing },
      { name: 'sh: disk vdb', detail: expect.stringContaining('its image is on the network'), fix: nothing },
    ]);
    expect(await missing('sh2', 1)).toMatchObject([
      { name: 'sh2: disk vda', fix: 'back up the others: --exclude=vda' },
    ]);
    const [none, ...others] = await missing('diskless', 1);
    expect(none).toMatchObject({ name: 'diskless: disks', detail: 'diskless has no disk to back up' });
    expect(others).toEqual([]);
    for (const name of ['sh', 'sh2', 'diskless']) await libvirt.remove(await libvirt.virsh.find(name));
  });

  it('names a VM that no tree can be called like, with commands that take its name', async () => {
    const image = chunkmount.path('words.img');
    await makeImage(image, 'raw', 4096);
    const domain = await libvirt.define('two words', [{ target: 'vda', path: image, format: 'raw' }]);
    const channel = (await checks(['--vm=two words'])).get('two words: guest agent')!;
    await mend(channel.fix!.split('; then in the guest:')[0]);
    const [name, ...others] = await missing('two words', 2);
    expect(name!.detail).toMatch(/^"two words" cannot be the name of a tree: /);
    expect(others).toEqual([]);
    await libvirt.killQemu(domain);
    await mend((await missing('two words', 2))[0]!.fix);
    expect((await checks(['--vm=two_words'])).get('two_words: overlays')).toMatchObject({ state: 'ok' });
    await libvirt.remove(await libvirt.virsh.find('two_words'));
  });

  it('says of a block device that overlays need a place', async () => {
    const file = chunkmount.path('blk.img');
    fs.writeFileSync(file, '');
    fs.truncateSync(file, 1024 * 1024);
    await withLoopDevice(file, async (device) => {
      const disk = { target: 'vda', path: device, format: 'raw', type: 'block' as const };
      const domain = await libvirt.define('blk', [disk]);
      const [check, ...others] = await missing('blk', 2);
      expect(check).toMatchObject({
        name: 'blk: disk vda',
        detail: `disk vda is on the block device ${device}, beside which no overlay can be made`,
        need: 'backing up blk while it runs',
        fix: 'say where overlays are to go: --overlay-dir=DIR',
      });
      expect(others).toEqual([]);
      const elsewhere = await checks(['--vm=blk', `--overlay-dir=${chunkmount.directory}`]);
      expect([...elsewhere.values()].filter(({ state }) => state === 'missing')).toEqual([]);
      await libvirt.remove(domain);
    });
  });

  it('says what a backup of a format without overlays is refused for', async () => {
    const image = chunkmount.path('disk.vdi');
    await makeImage(image, 'vdi', 1024 * 1024);
    const domain = await libvirt.define('vdi', [{ target: 'vda', path: image, format: 'vdi' }]);
    expect(await missing('vdi', 1)).toMatchObject([
      { name: 'vdi: disk vda', detail: expect.stringContaining('an overlay on the format vdi') },
    ]);
    await libvirt.remove(domain);
  });

  it('says which sessions went wrong, and which locks were kept, and how to end them', async () => {
    const mine = [`--statedir=${chunkmount.stateDirectory}`, `--connect=${libvirt.uri}`];
    const troubles = async () =>
      [...(await checks(['--vm=odd'])).values()].filter(({ state }) => state === 'missing');
    await chunkmount.succeed('--vm=odd', '--keep-lock', ...mine);
    expect(await troubles()).toEqual([]);
    const [daemon] = findProcesses((argv) => argv.at(-1)?.endsWith('/sessions/odd') === true);
    process.kill(daemon!.pid, 'SIGKILL');
    await eventually(async () => (await chunkmount.succeed('list')).includes(' dead'));
    const [session, lock, ...others] = await missing('odd', 3);
    expect(session).toMatchObject({
      name: 'odd: session',
      detail: 'dead: its daemon or its mount is gone',
      fix: 'chunkmount cleanup --vm=odd',
    });
    expect(lock).toMatchObject({ name: 'odd: lock', fix: 'chunkmount unlock --vm=odd' });
    expect(others).toEqual([]);
    expect((await checks(['--vm=mail01'])).has('odd: session')).toBe(false);
    await chunkmount.run(['cleanup', '--vm=odd']);
    expect((await missing('odd', 3)).map(({ name }) => name)).toEqual(['odd: lock']);
    await chunkmount.succeed('unlock', '--vm=odd');
    expect(await troubles()).toEqual([]);
    expect(traces(chunkmount)).toEqual([]);
  });

  it('prints a command that gives a VM the channel of the agent', async () => {
    const { fix } = (await checks(['--vm=mail01'])).get('mail01: guest agent')!;
    const [command = ''] = fix!.split('; then in the guest:');
    await mend(command);
    const domain = await libvirt.virsh.find('mail01');
    await libvirt.killQemu(domain);
    await libvirt.virsh.start(domain.uuid);
    const started = Date.now();
    const agent = (await checks(['--vm=mail01'])).get('mail01: guest agent');
    expect(Date.now() - started).toBeLessThan(60_000);
    expect(agent).toMatchObject({ state: 'poor', detail: expect.stringMatching(/^does not answer/) });
    expect(agent!.fix).toMatch(/qemu-guest-agent/);
  });

  it('says where overlays would not work, and what VM there is not', async () => {
    const nowhere = chunkmount.path('nowhere');
    const { exitCode, stdout } = await chunkmount.run([
      'doctor',
      '--vm=mail01,nosuch',
      `--overlay-dir=${nowhere}`,
      `--connect=${libvirt.uri}`,
    ]);
    expect(exitCode).toBe(1);
    expect(stdout).toMatch(
      new RegExp(
        `^missing mail01: overlays: no overlay can be made in ${nowhere}: .*\n.*needed for: .*\n.*mend it: `,
        'm',
      ),
    );
    expect(stdout).toMatch(/^missing nosuch: libvirt knows no such VM$/m);
  });

  it('names images that AppArmor keeps from libvirt, and the rule that lets it', async () => {
    const apparmor = `sed 's|</host>|<secmodel><model>apparmor</model><doi>0</doi></secmodel></host>|'`;
    const found = await checks(['--vm=mail01,odd'], changed('virsh', apparmor));
    expect(found.get('confinement of QEMU')!.detail).toBe('apparmor');
    expect(found.has('mail01: AppArmor')).toBe(false);
    const odd = found.get('odd: AppArmor')!;
    expect(odd.detail).toBe(`does not let libvirt read ${chunkmount.path('oddly-named')}`);
    expect(odd.fix).toContain(`echo '${chunkmount.directory}/** r,' >>/etc/apparmor.d/local/`);
    fs.rmSync(path.join(bin, 'virsh'));
  });

  it('says which directory QEMU may not enter', async () => {
    const directory = chunkmount.path('overlays');
    fs.mkdirSync(directory);
    fs.chmodSync(chunkmount.directory, 0o700);
    const asNobody = changed('virsh', `sed 's|+0:+0</baselabel>|+65534:+65534</baselabel>|'`);
    const args = ['--vm=odd', `--overlay-dir=${directory}`];
    const closed = (await checks(args, asNobody)).get('overlay directory')!;
    expect(closed.detail).toBe(`the mode of ${chunkmount.directory} does not let QEMU's user 65534 in`);
    await execa('sh', ['-c', closed.fix!]);
    expect((await checks(args, asNobody)).has('overlay directory')).toBe(false);
    fs.rmSync(path.join(bin, 'virsh'));
  });

  it('sees a qemu-storage-daemon without FUSE, and a state directory that others may write to', async () => {
    fs.mkdirSync(chunkmount.stateDirectory, { recursive: true });
    fs.chmodSync(chunkmount.stateDirectory, 0o777);
    const found = await checks(['--vm=odd'], changed('qemu-storage-daemon', `grep -v fuse`));
    expect(found.get('FUSE in qemu-storage-daemon')).toMatchObject({ state: 'missing' });
    const state = found.get('state directory')!;
    expect(state.state).toBe('poor');
    await execa('sh', ['-c', state.fix!]);
    expect((await checks(['--vm=odd'])).get('state directory')!.state).toBe('ok');
  });

  it('sees a state directory of another user', async () => {
    fs.mkdirSync(chunkmount.stateDirectory, { recursive: true });
    fs.chownSync(chunkmount.stateDirectory, 65534, 65534);
    const state = (await checks(['--vm=odd'])).get('state directory')!;
    expect(state).toMatchObject({ state: 'poor', need: 'safety' });
    await execa('sh', ['-c', state.fix!]);
    expect((await checks(['--vm=odd'])).get('state directory')!.state).toBe('ok');
  });
});
