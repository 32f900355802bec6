import * as fs from 'node:fs';
import * as path from 'node:path';
import { execa } from 'execa';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { TestChunkmount } from '../support/chunkmount.js';
import { makeImage, TestLibvirt } from '../support/libvirt.js';
import { program, requireAll, root } from '../support/requirements.js';

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
    await requireAll(root, program('qemu-img', 'qemu-utils'));
    fs.mkdirSync(bin);
    libvirt = await TestLibvirt.start();
    const [vda, odd] = [chunkmount.path('vda.qcow2'), chunkmount.path('oddly-named')];
    await makeImage(vda, 'qcow2', 1024 * 1024);
    await makeImage(odd, 'raw', 4096);
    await libvirt.define('mail01', [{ target: 'vda', path: vda, format: 'qcow2' }]);
    await libvirt.define('odd', [{ target: 'vda', path: odd, format: 'raw' }], { start: false });
  });

  afterAll(async () => {
    await libvirt?.close();
    fs.rmSync(chunkmount.directory, { recursive: true });
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

  it('prints a command that gives a VM the channel of the agent', async () => {
    const { fix } = (await checks(['--vm=mail01'])).get('mail01: guest agent')!;
    const [command = ''] = fix!.split('; then in the guest:');
    await execa('sh', ['-c', command], { env: { LIBVIRT_DEFAULT_URI: libvirt.uri } });
    const domain = await libvirt.virsh.find('mail01');
    await libvirt.killQemu(domain);
    await libvirt.virsh.start(domain.uuid);
    const started = Date.now();
    const agent = (await checks(['--vm=mail01'])).get('mail01: guest agent');
    expect(Date.now() - started).toBeLessThan(15_000);
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
    fs.mkdirSync(chunkmount.stateDirectory);
    fs.chmodSync(chunkmount.stateDirectory, 0o777);
    const found = await checks(['--vm=odd'], changed('qemu-storage-daemon', `grep -v fuse`));
    expect(found.get('FUSE in qemu-storage-daemon')).toMatchObject({ state: 'missing' });
    const state = found.get('state directory')!;
    expect(state.state).toBe('poor');
    await execa('sh', ['-c', state.fix!]);
    expect((await checks(['--vm=odd'])).get('state directory')!.state).toBe('ok');
  });
});
