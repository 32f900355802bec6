import * as fs from 'node:fs';
import * as path from 'node:path';
import { execa } from 'execa';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { loadDescription } from '../../src/libvirt/load-domain.js';
import { CLI, TestChunkmount } from '../support/chunkmount.js';
import { makeImage, type TestDomain, TestLibvirt } from '../support/libvirt.js';

const MIB = 1024 * 1024;

describe('options that concern the VM as a whole', () => {
  const chunkmount = new TestChunkmount();
  let libvirt: TestLibvirt;
  let domain: TestDomain;
  const tree = chunkmount.tree('devsrv');
  const connect = () => `--connect=${libvirt.uri}`;
  const state = async () => (await libvirt.virsh.state(domain.uuid)).state;

  beforeAll(async () => {
    libvirt = await TestLibvirt.start();
    await makeImage(chunkmount.path('vda.qcow2'), 'qcow2', 4 * MIB, 0x21);
    domain = await libvirt.define('devsrv', [
      { target: 'vda', path: chunkmount.path('vda.qcow2'), format: 'qcow2' },
    ]);
  });

  afterAll(async () => {
    await chunkmount.close();
    await libvirt?.close();
  });

  it('--state puts the memory into the tree, and the VM goes on', async () => {
    await chunkmount.succeed('--vm=devsrv', connect(), '--state');
    expect(await state()).toBe('running');
    const manifest = JSON.parse(fs.readFileSync(path.join(tree, 'manifest.json'), 'utf8'));
    const size = fs.statSync(path.join(tree, 'devsrv.state')).size;
    expect(manifest).toMatchObject({
      consistency: 'memory',
      extras: [{ file: 'devsrv.state', kind: 'state', size }],
    });
    // libvirt's own magic number of a saved memory.
    const head = fs.readFileSync(path.join(tree, 'devsrv.state')).subarray(0, 14).toString('latin1');
    expect(head).toBe('LibvirtQemudSa');
    await chunkmount.succeed('cleanup', '--vm=devsrv');
    expect(await state()).toBe('running');
  });

  it('--no-snapshot pauses the VM until cleanup', async () => {
    await chunkmount.succeed('--vm=devsrv', connect(), '--no-snapshot');
    expect(await state()).toBe('paused');
    expect(fs.existsSync(path.join(tree, 'vda/000000/00000000'))).toBe(true);
    await chunkmount.succeed('cleanup', '--vm=devsrv');
    expect(await state()).toBe('running');
  });

  it('--no-snapshot --quiesce says that nothing is frozen', async () => {
    const { exitCode, stderr } = await chunkmount.run([
      '--vm=devsrv',
      connect(),
      '--no-snapshot',
      '--quiesce',
    ]);
    expect({ exitCode, stderr }).toEqual({
      exitCode: 0,
      stderr: expect.stringMatching(/warning: the file systems of devsrv were not frozen: .*only paused/),
    });
    await chunkmount.succeed('cleanup', '--vm=devsrv');
  });

  it('--no-snapshot with run lets it go on whatever the command does', async () => {
    const { exitCode } = await chunkmount.run([
      'run',
      '--vm=devsrv',
      connect(),
      '--no-snapshot',
      '--',
      'false',
    ]);
    expect(exitCode).toBe(1);
    expect(await state()).toBe('running');
  });

  it('--shutdown gives up, and changes nothing, when the VM does not shut down in time', async () => {
    const args = ['--vm=devsrv', connect(), '--shutdown', '--shutdown-timeout=1'];
    const { exitCode, stderr } = await chunkmount.run(args);
    expect(exitCode).toBe(1);
    expect(stderr).toMatch(/devsrv did not shut down within 1 s\n +\S/);
    expect(await state()).toBe('running');
    expect(fs.existsSync(tree)).toBe(false);
  });

  it('dump --state has the memory beside the images', async () => {
    await chunkmount.succeed('--dump', '--vm=devsrv', connect(), '--state');
    const names = fs.readdirSync(path.join(chunkmount.backupDirectory, 'devsrv.dump')).sort();
    expect(names).toEqual(['devsrv.sha256', 'devsrv.state', 'devsrv.xml', 'devsrv_vda.raw']);
  });

  it('cleanup from inside the tree gives the VM its disks back', async () => {
    await chunkmount.succeed('--vm=devsrv', connect());
    const script = 'cd "$0" && exec "$@"';
    const command = ['-c', script, path.join(tree, 'vda'), process.execPath, CLI, 'cleanup', '--vm=devsrv'];
    const { exitCode, stderr } = await execa('sh', command, { env: chunkmount.env, reject: false });
    // Nobody but the command itself is there.
    expect([exitCode, stderr]).toEqual([0, '']);
    const { disks } = await loadDescription(libvirt.virsh, domain.uuid);
    expect(disks.map((disk) => disk.path)).toEqual([chunkmount.path('vda.qcow2')]);
  });

  it.each([
    ['--snapsize=5X', /"5X" is no size/],
    ['--shutdown-timeout=soon', /--shutdown-timeout=soon/],
  ])('refuses %s', async (option, message) => {
    const { exitCode, stderr } = await chunkmount.run(['--vm=devsrv', connect(), option]);
    expect([exitCode, stderr]).toEqual([2, expect.stringMatching(message)]);
  });
});
