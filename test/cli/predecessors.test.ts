import * as fs from 'node:fs';
import * as path from 'node:path';
import { execa } from 'execa';
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest';
import { run } from '../../src/host/exec.js';
import { findProcesses } from '../../src/host/process-list.js';
import { loadDomain } from '../../src/libvirt/load-domain.js';
import { TestChunkmount } from '../support/chunkmount.js';
import { withLoopDevice } from '../support/images.js';
import { makeImage, type TestDomain, TestLibvirt } from '../support/libvirt.js';
import { pathWithout } from '../support/path-without.js';
import { fuseDevice, program, requireAll, root } from '../support/requirements.js';
import { expectError, toldError, traces } from './expectations.js';

const MIB = 1024 * 1024;
const AGENT = `<channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>`;

/**
 * What users of virt-backup, LibVirtKvm-scripts, virtnbdbackup and others ran into with VMs, one test each: what happens here, and what is
 * said. The rest, which needs no VM, is in predecessors-trees.test.ts.
 */
describe('what users of other programs ran into with VMs', () => {
  const chunkmount = new TestChunkmount();
  const bin = chunkmount.path('bin');
  const template = chunkmount.path('template.qcow2');
  const vda = chunkmount.path('vda.qcow2');
  let libvirt: TestLibvirt;
  let mail01: TestDomain;
  const uri = () => `--connect=${libvirt.uri}`;
  const mount = (...options: string[]) =>
    chunkmount.run(['--vm=mail01', uri(), '--chunk-size=64K', ...options]);
  const cleanup = (...options: string[]) => chunkmount.run(['cleanup', '--vm=mail01', ...options]);
  const state = async () => (await libvirt.virsh.state(mail01.uuid)).state;
  const overlays = () => fs.readdirSync(chunkmount.directory).filter((name) => name.includes('.cm-'));

  beforeAll(async () => {
    await requireAll(root, fuseDevice, program('qemu-img', 'qemu-utils'), program('losetup', 'mount'));
    libvirt = await TestLibvirt.start();
    await makeImage(template, 'qcow2', 2 * MIB, 0x11);
    await run('qemu-img', ['create', '-q', '-f', 'qcow2', '-b', template, '-F', 'qcow2', vda]);
    await makeImage(chunkmount.path('dev.raw'), 'raw', MIB, 0x22);
    await makeImage(chunkmount.path('dev-data.raw'), 'raw', MIB, 0x33);
    mail01 = await libvirt.define('mail01', [{ target: 'vda', path: vda, format: 'qcow2' }], {
      devices: AGENT,
    });
    await libvirt.define('devsrv', [
      { target: 'vda', path: chunkmount.path('dev.raw'), format: 'raw' },
      { target: 'vdb', path: chunkmount.path('dev-data.raw'), format: 'raw' },
    ]);
    fs.mkdirSync(bin);
  });

  afterEach(async () => {
    fs.rmSync(path.join(bin, 'virsh'), { force: true });
    const left = traces(chunkmount);
    if (left.length > 0) await chunkmount.run(['cleanup', '--all']);
    expect(left).toEqual([]);
    expect(await state()).toBe('running');
  });

  afterAll(async () => {
    await chunkmount.close();
    await libvirt?.close();
  });

  /** The real virsh, but for what a few lines of shell make of a command. */
  function virshThrough(lines: string): { PATH: string } {
    const script = `#!/bin/bash\n${lines}\nPATH=\${PATH#*:} exec virsh "$@"\n`;
    fs.writeFileSync(path.join(bin, 'virsh'), script, { mode: 0o755 });
    return { PATH: `${bin}:${process.env.PATH}` };
  }

  const chainOf = async (name = 'mail01') => {
    const [disk] = (await loadDomain(libvirt.virsh, name)).disks;
    return [disk?.path, ...(disk?.backing ?? []).map((file) => file.path)];
  };

  it('a merge that never ends: bounded, nothing is deleted, and another cleanup finishes it', async () => {
    expect((await mount()).exitCode).toBe(0);
    await libvirt.guestWrite(mail01, 'vda', { offset: 0, length: MIB, pattern: 0x44 });
    const slow = `case "$*" in *blockcommit*) set -- "$@" --bandwidth 1024 --bytes;; *--bandwidth*) exit 0;; esac`;
    const args = ['cleanup', '--vm=mail01', '--commit-timeout=1'];
    const told = expectError(await chunkmount.run(args, virshThrough(slow)), 1);
    expect(told.message).toMatch(/disk vda of mail01 is not merged yet/);
    expect(told.hint).toMatch(/the VM runs on and nothing is lost; .* another cleanup finishes it/);
    expect(overlays()).toHaveLength(1);
    // The copy is ready in the meantime: "block copy still active", for whoever does not look first.
    expect((await cleanup()).exitCode).toBe(0);
    await libvirt.guestVerify(mail01, 'vda', { offset: 0, length: MIB, pattern: 0x44 });
  });

  it("the merge took the user's own chain with it: it stays as it was", async () => {
    const before = fs.readFileSync(template);
    expect(await chainOf()).toEqual([vda, template]);
    expect((await mount()).exitCode).toBe(0);
    expect(await chainOf()).toEqual([expect.stringContaining('.cm-'), vda, template]);
    expect((await cleanup()).exitCode).toBe(0);
    expect(await chainOf()).toEqual([vda, template]);
    expect(fs.readFileSync(template).equals(before)).toBe(true);
  });

  it('overlays piled up unnoticed: cleanup fails loudly, and nothing is put on top', async () => {
    expect((await mount()).exitCode).toBe(0);
    const without = pathWithout(fs.mkdtempSync(chunkmount.path('path-')), 'virsh');
    const failed = await chunkmount.run(['cleanup', '--vm=mail01'], without);
    expect(expectError(failed, 1).message).toContain('virsh is not installed');
    const told = expectError(await mount(), 3);
    expect(told.message).toMatch(/^mail01 has a session already: it is mounted at/);
    expect(told.hint).toBe('end it first: chunkmount cleanup --vm=mail01');
    expect(overlays()).toHaveLength(1);
    expect((await cleanup()).exitCode).toBe(0);
  });

  it('AppArmor refuses overlays: said, with what tells more, and nothing is left', async () => {
    const refuse = `case " $* " in *' snapshot-create '*) echo "error: internal error: Could not open '/x': Permission denied" >&2; exit 1;; esac`;
    const told = expectError(await chunkmount.run(['--vm=mail01', uri()], virshThrough(refuse)), 1);
    expect(told.message).toMatch(/^no snapshot of mail01 could be made: .*Permission denied$/);
    expect(told.hint).toMatch(/AppArmor.*chunkmount doctor/);
  });

  it('leftovers of a crash: cleanup --all, as at boot, takes them away', async () => {
    expect((await mount()).exitCode).toBe(0);
    for (const { pid } of findProcesses((argv) => argv.some((arg) => arg.includes('/sessions/mail01'))))
      process.kill(pid, 'SIGKILL');
    const told = expectError(await chunkmount.run(['cleanup', '--all']), 1);
    expect(told.hint).toBe('all is cleaned up; back it up again');
    expect(traces(chunkmount)).toEqual([]);
    expect(await chainOf()).toEqual([vda, template]);
  });

  it('a freeze that hangs: bounded', async () => {
    // It takes the question and gives no answer, as long as libvirt is told to wait.
    const hung = `case " $* " in *' qemu-agent-command '*) while [ "$1" != --timeout ]; do shift; done; sleep "$2"; echo 'error: Guest agent is not responding' >&2; exit 1;; esac`;
    const started = Date.now();
    const args = ['--vm=mail01', uri(), '--quiesce=require'];
    const told = expectError(await chunkmount.run(args, virshThrough(hung)), 1);
    expect(Date.now() - started).toBeLessThan(60_000);
    expect(told.message).toMatch(/guest agent does not answer/);
    expect(told.hint).toMatch(/--quiesce/);
  });

  it('no agent: --quiesce goes on without and says so, --quiesce=require does not', async () => {
    const { exitCode, stdout, stderr } = await mount('--quiesce', '--json');
    expect(exitCode).toBe(0);
    expect(stderr).toMatch(/guest agent does not answer/);
    expect(JSON.parse(stdout).mounted).toMatchObject([{ consistency: 'crash' }]);
    expect((await cleanup()).exitCode).toBe(0);
    expect(expectError(await mount('--quiesce=require'), 1).message).toMatch(/guest agent does not answer/);
  });

  it('disks on block devices: as any other, with a place for the overlay', async () => {
    const backing = chunkmount.path('block.raw');
    await makeImage(backing, 'raw', MIB, 0x55);
    await withLoopDevice(backing, async (device) => {
      const disks = [{ target: 'vda', path: device, format: 'raw', type: 'block' as const }];
      const domain = await libvirt.define('blocksrv', disks);
      const args = ['--vm=blocksrv', uri()];
      const told = expectError(await chunkmount.run(args), 2);
      expect(told.message).toMatch(/^disk vda is on the block device/);
      expect(told.hint).toMatch(/--overlay-dir=DIR/);
      await chunkmount.succeed(...args, `--overlay-dir=${chunkmount.directory}`);
      await chunkmount.succeed('verify', chunkmount.tree('blocksrv'));
      await chunkmount.succeed('cleanup', '--vm=blocksrv');
      expect(await chainOf('blocksrv')).toEqual([device]);
      await libvirt.remove(domain);
    });
  });

  it('the room for changes ran out: a floor below which nothing begins', async () => {
    const small = chunkmount.path('small');
    fs.mkdirSync(small);
    await run('mount', ['-t', 'tmpfs', '-o', 'size=20m', 'tmpfs', small]);
    try {
      const told = expectError(await mount(`--overlay-dir=${small}`), 1);
      expect(told.message).toMatch(/small has only \d+ MiB left for an overlay$/);
      expect(told.hint).toMatch(/make room there \(64 MiB at least/);
    } finally {
      await run('umount', [small]);
    }
  });

  it('bitmaps broke: there are none, QEMU may die, and the next backup is right', async () => {
    const copy = chunkmount.path('copy');
    const backup = ['run', '--vm=mail01', uri(), '--chunk-size=64K', '--', 'sh', '-c'];
    const rsync = `rsync -a "$CHUNKMOUNT_TREE/" '${copy}/'`;
    expect((await chunkmount.run([...backup, rsync])).exitCode).toBe(0);
    await libvirt.guestWrite(mail01, 'vda', { offset: 70_000, length: 4096, pattern: 0x66 });
    await libvirt.killQemu(mail01);
    await libvirt.virsh.start(mail01.uuid);
    const sent = await chunkmount.run([...backup, `${rsync} --itemize-changes`]);
    const chunks = [...sent.stdout.matchAll(/^>f\S+ (vda\/.*)$/gm)].map(([, file]) => file);
    expect(chunks).toEqual(['vda/000000/00000001']);
    await chunkmount.succeed('verify', copy);
  });

  it('the host was lost: the VM comes back from the copy alone, with its identity', async () => {
    const copy = chunkmount.path('whole');
    const rsync = `rsync -a "$CHUNKMOUNT_TREE/" '${copy}/'`;
    await chunkmount.succeed('run', '--vm=devsrv', uri(), '--chunk-size=64K', '--', 'sh', '-c', rsync);
    const before = await libvirt.virsh.find('devsrv');
    await libvirt.remove({ ...before });
    const storage = chunkmount.path('storage');
    fs.mkdirSync(storage);
    const options = ['--define', '--same-identity', '--start', `--storage=${storage}`];
    expect(await chunkmount.succeed('restore', copy, ...options, uri())).toBe('devsrv\n');
    expect(await libvirt.virsh.find('devsrv')).toEqual(before);
    expect((await libvirt.virsh.state(before.uuid)).state).toBe('running');
  });

  it('a disk was resized since the last backup: the next is whole, and as large as it is now', async () => {
    const [{ path: image = '' } = {}] = (await loadDomain(libvirt.virsh, 'devsrv')).disks;
    const [copy, back] = [chunkmount.path('whole'), chunkmount.path('back.raw')];
    const resize = ['--domain', 'devsrv', '--path', 'vda', '--size', `${3 * MIB}B`];
    await libvirt.virsh.call('blockresize', resize);
    const rsync = `rsync -a --delete "$CHUNKMOUNT_TREE/" '${copy}/'`;
    await chunkmount.succeed('run', '--vm=devsrv', uri(), '--chunk-size=64K', '--', 'sh', '-c', rsync);
    await chunkmount.succeed('verify', copy);
    await chunkmount.succeed('restore', copy, '--disk=vda', `--to=${back}`);
    expect(fs.statSync(back).size).toBe(3 * MIB);
    expect((await execa('cmp', [image, back])).exitCode).toBe(0);
  });

  it('--shutdown left the VM off: it is started again, whatever its disks are', async () => {
    // This guest has nothing that listens to the power button.
    const obey = `case " $* " in *' shutdown '*) args=("\${@/#shutdown/destroy}"); set -- "\${args[@]}";; esac`;
    const args = ['--vm=mail01', uri(), '--shutdown', '--json'];
    const { exitCode, stdout, stderr } = await chunkmount.run(args, virshThrough(obey));
    expect(exitCode, stderr).toBe(0);
    expect(JSON.parse(stdout).mounted).toMatchObject([{ consistency: 'offline' }]);
    expect(await state()).toBe('running');
    expect((await cleanup()).exitCode).toBe(0);
    const told = expectError(await mount('--shutdown', '--shutdown-timeout=1'), 1);
    expect(told.message).toMatch(/did not shut down within 1 s/);
  });

  it('locks were tested, then made: of two that begin at once, one does', async () => {
    const both = await Promise.all([mount(), mount()]);
    expect(both.map(({ exitCode }) => exitCode).sort()).toEqual([0, 3]);
    const [refused] = both.filter(({ exitCode }) => exitCode === 3);
    expect(toldError(refused!.stderr).message).toMatch(/^mail01 (is locked: mount|has a session already)/);
    expect(overlays()).toHaveLength(1);
    expect((await cleanup()).exitCode).toBe(0);
  });

  it('what was found out about one VM leaked into the next: each has its own disks', async () => {
    await chunkmount.succeed('--vm=devsrv,mail01', uri(), '--exclude=vdb');
    const disksOf = (name: string): string[] => {
      const text = fs.readFileSync(path.join(chunkmount.tree(name), 'manifest.json'), 'utf8');
      return JSON.parse(text).disks.map(({ target, size }: Record<string, string>) => `${target} ${size}`);
    };
    expect(disksOf('devsrv')).toEqual([`vda ${3 * MIB}`]);
    expect(disksOf('mail01')).toEqual([`vda ${2 * MIB}`]);
    await chunkmount.succeed('cleanup', '--all');
  });
});
