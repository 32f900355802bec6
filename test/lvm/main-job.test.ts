import * as fs from 'node:fs';
import * as path from 'node:path';
import { execa } from 'execa';
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest';
import { expectError, traces } from '../cli/expectations.js';
import { rsync, TestChunkmount } from '../support/chunkmount.js';
import { type TestDomain, TestLibvirt } from '../support/libvirt.js';
import { build, deviceMapper, program, requireAll } from '../support/requirements.js';
import { listVolumes, makeVolume, removeVolumes, type TestVolume, VOLUME_GROUP } from '../support/volumes.js';

const MIB = 1024 * 1024;

/** The real program on a running VM whose disks are logical volumes. In order. */
describe('from logical volumes to a tree, and back', () => {
  const chunkmount = new TestChunkmount();
  const copy = chunkmount.path('copy');
  const tree = chunkmount.tree('lvm01');
  let libvirt: TestLibvirt;
  let domain: TestDomain;
  let volumes: TestVolume[];
  const connect = () => `--connect=${libvirt.uri}`;

  beforeAll(async () => {
    await requireAll(build, deviceMapper, program('lvcreate', 'lvm2'), program('rsync'));
    libvirt = await TestLibvirt.start();
    volumes = [await makeVolume('main-a', 24, { pattern: 0x11 }), await makeVolume('main-b', 8)];
    domain = await libvirt.define(
      'lvm01',
      volumes.map(({ device }, index) => ({
        target: `vd${'ab'[index]}`,
        path: device,
        format: 'raw',
        type: 'block',
      })),
    );
  });

  // A test that failed half-way must not fail the others.
  afterEach(() => chunkmount.run(['cleanup', '--all']));

  afterAll(async () => {
    await chunkmount.close();
    await libvirt?.close();
    await removeVolumes('main-a', 'main-b');
  });

  async function expectNothing(): Promise<void> {
    expect(traces(chunkmount)).toEqual([]);
    expect(await listVolumes()).toEqual(['main-a', 'main-b']);
    expect((await libvirt.virsh.state(domain.uuid)).state).toBe('running');
  }

  it('mounts both at one point in time, and the guest goes on', async () => {
    const raw = chunkmount.path('before.raw');
    await execa('dd', [`if=${volumes[0]!.device}`, `of=${raw}`, 'bs=1M']);
    const { stdout, stderr, exitCode } = await chunkmount.run([
      '--vm=lvm01',
      '--snapsize=50%',
      '--keep-snapshot',
      '--debug',
      connect(),
    ]);
    expect(exitCode, stderr).toBe(0);
    expect(stdout).toBe(`${tree}\n`);
    expect(stderr).toMatch(/warning: --keep-snapshot has no effect on lvm01: .*of volumes that are not thin/);
    expect(stderr).toMatch(/lvm01 was paused for \d+ ms/);
    await libvirt.guestWrite(domain, 'vda', { offset: MIB, length: MIB, pattern: 0x22 });
    await rsync(tree, copy);
    await chunkmount.succeed('cleanup', '--vm=lvm01');
    await expectNothing();
    const restored = chunkmount.path('restored.raw');
    await chunkmount.succeed('restore', copy, '--disk=vda', `--to=${restored}`);
    await execa('cmp', [raw, restored]);
    await libvirt.guestVerify(domain, 'vda', { offset: MIB, length: MIB, pattern: 0x22 });
  });

  it('a snapshot that runs full is never a good backup', async () => {
    await chunkmount.succeed('--vm=lvm01', '--snapsize=4M', connect());
    await libvirt.guestWrite(domain, 'vda', { offset: 0, length: 16 * MIB, pattern: 0x33 });
    await expect.poll(() => chunkmount.succeed('list'), { timeout: 60_000 }).toMatch(/lvm01 +failed/);
    const chunk = path.join(tree, 'vda', '000000', '00000005');
    await expect(fs.promises.readFile(chunk)).rejects.toThrow(/EIO/);
    const told = expectError(await chunkmount.run(['cleanup', '--vm=lvm01']), 1);
    expect(told.message).toMatch(/the LVM snapshot cmtest\/\S+ of disk vda ran full/);
    expect(told.hint).toMatch(/--snapsize/);
    await expectNothing();
  });

  /** `run` with a command that goes on with `script` when the guest has written `length` bytes. */
  async function runWhileWriting(script: string, length: number, ...options: string[]) {
    const written = chunkmount.path(`written-${length}`);
    const command = `while ! [ -e '${written}' ]; do sleep 0.2; done; ${script}`;
    const args = ['run', '--vm=lvm01', ...options, connect(), '--', 'sh', '-c', command];
    const running = chunkmount.start(args);
    await expect.poll(() => fs.existsSync(tree), { timeout: 120_000 }).toBe(true);
    await libvirt.guestWrite(domain, 'vda', { offset: 0, length, pattern: 0x44 });
    fs.writeFileSync(written, '');
    const { exitCode, stderr } = await running;
    return { exitCode, stderr: String(stderr) };
  }

  it('run fails with it, although its command did not notice', async () => {
    const { exitCode, stderr } = await runWhileWriting('exit 0', 16 * MIB, '--snapsize=4M');
    expect(exitCode, stderr).toBe(1);
    expect(stderr).toMatch(/the LVM snapshot cmtest\/\S+ of disk vda ran full/);
    await expectNothing();
  });

  it('one that is enlarged in time is', async () => {
    // Without KVM, a machine takes its time to look at a snapshot.
    const sizes = `lvs --noheadings --nosuffix --units=m --options=lv_size --select=origin=main-a ${VOLUME_GROUP}`;
    const larger = `for second in $(seq 120); do ${sizes} | grep -q ' 8.00' || break; sleep 1; done`;
    const script = `${larger}; rsync -a "$CHUNKMOUNT_TREE/" '${copy}/'`;
    const { exitCode, stderr } = await runWhileWriting(script, 7 * MIB, '--snapsize=8M', '--snap-autoextend');
    expect(exitCode, stderr).toBe(0);
    expect(stderr).toMatch(/was nearly full and is larger now/);
    await expectNothing();
  });
});
