import * as fs from 'node:fs';
import * as path from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { TestChunkmount } from '../support/chunkmount.js';
import { makeImage, type TestDomain, TestLibvirt } from '../support/libvirt.js';
import { build, fuseDevice, requireAll, root } from '../support/requirements.js';
import { expectError, traces } from './expectations.js';

const MIB = 1024 * 1024;

describe('when libvirt does not answer for a moment at cleanup', () => {
  const chunkmount = new TestChunkmount();
  const image = chunkmount.path('vda.qcow2');
  const bin = chunkmount.path('bin');
  const failed = chunkmount.path('failed');
  const tracking = path.join(chunkmount.stateDirectory, 'index/mail01/vda.tracking.v1.json');
  let libvirt: TestLibvirt;
  let domain: TestDomain;

  beforeAll(async () => {
    await requireAll(root, build, fuseDevice);
    libvirt = await TestLibvirt.start();
    await makeImage(image, 'qcow2', 4 * MIB, 0x21);
    domain = await libvirt.define('mail01', [{ target: 'vda', path: image, format: 'qcow2' }]);
    // A virsh that is not to be talked to, and whose first call with a command fails.
    fs.mkdirSync(bin);
    const fail = `[ $# -gt 3 ] || exit 1; [ -e '${failed}' ] || { : >'${failed}'; echo 'error: failed to connect to the hypervisor' >&2; exit 1; }`;
    const script = `#!/bin/sh\n${fail}\nPATH=\${PATH#*:} exec virsh "$@"\n`;
    fs.writeFileSync(path.join(bin, 'virsh'), script, { mode: 0o755 });
  });

  afterAll(async () => {
    await chunkmount.close();
    await libvirt?.close();
  });

  const mount = () => chunkmount.succeed('--vm=mail01', `--connect=${libvirt.uri}`, '--snapshot=pull');
  const cleanup = (env = {}) => chunkmount.run(['cleanup', '--vm=mail01'], env);
  const failing = () => ({ PATH: `${bin}:${process.env.PATH}` });

  async function expectWell(): Promise<void> {
    expect(traces(chunkmount)).toEqual([]);
    expect((await libvirt.virsh.state(domain.uuid)).state).toBe('running');
    const again = await cleanup();
    expect(again).toMatchObject({ exitCode: 0, stderr: expect.stringContaining('has no session') });
  }

  it('all is undone, but it fails, and the next backup does not go on from this one', async () => {
    await mount();
    expect((await cleanup()).exitCode).toBe(0);
    expect(fs.existsSync(tracking)).toBe(true);
    await mount();
    const told = expectError(await cleanup(failing()), 1);
    expect(told.message).toMatch(/^whether the frozen disks stayed as they were cannot be told: /);
    expect(fs.existsSync(failed)).toBe(true);
    expect(fs.existsSync(tracking)).toBe(false);
    await expectWell();
  });

  it('a cleanup that was cut off before has not forgotten it', async () => {
    await mount();
    fs.rmSync(failed);
    const preload = path.join(import.meta.dirname, '../crash/die-at-record.mjs');
    const env = { NODE_OPTIONS: `--import=${preload}`, CRASH_AT: '1', CRASH_COUNT: chunkmount.path('count') };
    const running = chunkmount.start(['cleanup', '--vm=mail01'], { ...env, ...failing() });
    expect(await running).toMatchObject({ signal: 'SIGKILL' });
    expect(expectError(await cleanup(), 1).message).toMatch(/cannot be told/);
    await expectWell();
  });
});
