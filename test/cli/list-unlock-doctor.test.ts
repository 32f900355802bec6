import * as fs from 'node:fs';
import * as path from 'node:path';
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest';
import { findProcesses } from '../../src/host/process-list.js';
import { TestChunkmount } from '../support/chunkmount.js';
import { noise } from '../support/images.js';
import { makeImage, TestLibvirt } from '../support/libvirt.js';
import { pathWithout } from '../support/path-without.js';
import { fuseDevice, program, requireAll, root } from '../support/requirements.js';
import { eventually, expectError, toldError, traces } from './expectations.js';

const CHUNK = 256 * 1024;

interface Check {
  readonly name: string;
  readonly state: string;
  readonly detail: string;
  readonly need?: string;
  readonly fix?: string;
}

describe('what is there, and what is missing', () => {
  const chunkmount = new TestChunkmount();
  const image = chunkmount.path('disk.raw');
  const tree = chunkmount.tree('demo');
  const given = [`--image=${image}`, '--name=demo'];
  let libvirt: TestLibvirt;
  const uri = () => `--connect=${libvirt.uri}`;

  beforeAll(async () => {
    await requireAll(root, fuseDevice, program('qemu-img', 'qemu-utils'), program('lvs', 'lvm2'));
    fs.writeFileSync(image, Buffer.concat([noise(3 * CHUNK, 1), Buffer.alloc(CHUNK)]));
    libvirt = await TestLibvirt.start();
    const vda = chunkmount.path('vda.qcow2');
    await makeImage(vda, 'qcow2', 4 * CHUNK, 0x11);
    await libvirt.define('mail01', [{ target: 'vda', path: vda, format: 'qcow2' }]);
  });

  afterEach(async () => {
    const left = traces(chunkmount);
    // One test that fails shall not take the others with it.
    if (left.length > 0) await chunkmount.run(['cleanup', '--all']);
    expect(left).toEqual([]);
  });

  afterAll(async () => {
    await chunkmount.close();
    await libvirt?.close();
  });

  async function list() {
    const { sessions } = JSON.parse(await chunkmount.succeed('list', '--json'));
    return sessions;
  }

  describe('list', () => {
    it('has nothing to show without sessions', async () => {
      const none = { exitCode: 0, stderr: 'chunkmount: there are no sessions\n' };
      expect(await chunkmount.run(['list'])).toEqual({ ...none, stdout: '' });
      expect(JSON.parse((await chunkmount.run(['list', '--json'])).stdout)).toEqual({
        sessions: [],
        kept: [],
      });
    });

    it('takes no file for a session, and neither does cleanup', async () => {
      const file = path.join(chunkmount.stateDirectory, 'sessions', 'notes.txt');
      fs.mkdirSync(path.dirname(file), { recursive: true });
      fs.writeFileSync(file, 'not ours');
      expect(await list()).toEqual([]);
      await chunkmount.succeed('cleanup', '--all');
      fs.rmSync(file);
    });

    it('shows sessions with what they did so far, also once the daemon is dead', async () => {
      await chunkmount.succeed(...given);
      await chunkmount.succeed('--vm=mail01', uri());
      fs.readFileSync(path.join(tree, 'disk0/000000/00000001'));
      await eventually(async () => (await list())[0].daemon?.counters.reads > 0);
      const [demo, mail01] = await list();
      expect(demo).toEqual({
        name: 'demo',
        state: 'mounted',
        mountpoint: tree,
        since: expect.stringMatching(/^\d{4}-\d\d-\d\dT.*Z$/),
        age: expect.any(Number),
        disks: [{ target: 'disk0', size: 4 * CHUNK, snapshot: 'none' }],
        space: [],
        daemon: expect.objectContaining({
          state: 'serving',
          scan: {
            ...{ chunks: 4, resolved: 4, changed: 4, unreadable: 0, damagedIndexBlocks: 0 },
            ...{ kept: 0, audited: 0, bytesRead: 4 * CHUNK },
          },
          counters: expect.objectContaining({ ioErrors: 0, chunksRead: 1 }),
        }),
        pending: ['serve', 'mountpoint', 'hold'],
        kept: false,
      });
      expect(demo.daemon.counters.bytesRead).toBeGreaterThanOrEqual(CHUNK);
      expect(mail01).toMatchObject({
        name: 'mail01',
        disks: [{ target: 'vda', snapshot: 'overlay' }],
        space: [
          {
            path: expect.stringMatching(/vda\.cm-.*\.qcow2$/),
            used: expect.any(Number),
            free: expect.any(Number),
          },
        ],
      });
      const [head, first, second] = (await chunkmount.succeed('list')).trimEnd().split('\n');
      expect(head).toMatch(/^NAME +STATE +MOUNTPOINT +DISKS +AGE +SCANNED +CHANGED +READ +OVERLAYS +FREE$/);
      expect(first).toMatch(
        new RegExp(`^demo +mounted +${tree} +disk0:none +\\S+.* +100 % +4 +[0-9.]+ KiB +- +-$`),
      );
      expect(second).toMatch(
        /^mail01 +mounted +\S+\/mail01 +vda:overlay +\S+.* % +\d+ +[0-9.]+ \w+ +[0-9.]+ \w+ +[0-9.]+ [MGT]iB$/,
      );
      const [daemon] = findProcesses((argv) => argv.at(-1)?.endsWith('/sessions/demo') === true);
      process.kill(daemon!.pid, 'SIGKILL');
      await eventually(async () => (await list())[0].state === 'dead');
      expect(await chunkmount.succeed('list')).toMatch(/^demo +dead +.*\nmail01 +mounted /m);
      const { exitCode, stdout, stderr } = await chunkmount.run(['cleanup', '--all', '--json']);
      expect(exitCode).toBe(5);
      expect(JSON.parse(stdout)).toMatchObject({ ended: ['mail01'], failed: [{ name: 'demo' }] });
      expect(toldError(stderr).message).toBe('1 of 2 failed: demo');
    });
  });

  describe('unlock', () => {
    it('releases what --keep-lock kept, and nothing is mounted before', async () => {
      await chunkmount.succeed(...given, '--keep-lock');
      expect(await chunkmount.succeed('list')).toMatch(/^demo +mounted, lock kept /m);
      await chunkmount.succeed('cleanup', '--name=demo');
      expect(await list()).toMatchObject([{ name: 'demo', state: 'locked', kept: true, mountpoint: null }]);
      const told = expectError(await chunkmount.run(given), 3);
      expect(told.message).toMatch(/^demo is locked: cleanup kept the lock on \d{4}-/);
      expect(told.hint).toBe('release it: chunkmount unlock --name=demo');
      const unlocked = await chunkmount.succeed('unlock', '--vm=demo', '--json');
      expect(JSON.parse(unlocked)).toEqual({ unlocked: ['demo'], failed: [] });
      expect(await list()).toEqual([]);
    });

    it('releases what cleanup --keep-lock kept', async () => {
      await chunkmount.succeed(...given);
      await chunkmount.succeed('cleanup', '--name=demo', '--keep-lock');
      expect(await list()).toMatchObject([{ name: 'demo', state: 'locked', kept: true, mountpoint: null }]);
      const unlocked = await chunkmount.succeed('unlock', '--name=demo', '--json');
      expect(JSON.parse(unlocked)).toEqual({ unlocked: ['demo'], failed: [] });
      expect(await list()).toEqual([]);
    });

    it('takes no lock from a command that works', async () => {
      const bin = chunkmount.path('bin');
      const marker = chunkmount.path('marker');
      fs.mkdirSync(bin);
      const slow = `#!/bin/sh\n: >'${marker}'; while [ -e '${marker}' ]; do sleep 0.05; done\nPATH=\${PATH#*:} exec mount "$@"\n`;
      fs.writeFileSync(path.join(bin, 'mount'), slow, { mode: 0o755 });
      const running = chunkmount.run(given, { PATH: `${bin}:${process.env.PATH}` });
      await eventually(() => fs.existsSync(marker));
      expect((await list())[0].state).toBe('working');
      for (const verb of ['unlock', 'cleanup']) {
        const told = expectError(await chunkmount.run([verb, '--name=demo']), 3);
        expect(told.message).toMatch(/^demo is locked: mount \(process \d+, since .*\) is working on it$/);
        expect(told.hint).toBe('wait until it has ended');
      }
      fs.rmSync(marker);
      expect((await running).exitCode).toBe(0);
      await chunkmount.succeed('cleanup', '--name=demo');
    });
  });

  describe('several VMs', () => {
    it('have a result each, and exit code 5 when one fails', async () => {
      const { exitCode, stdout, stderr } = await chunkmount.run([
        '--vm=mail01,nosuch',
        '--chunk-size=64K',
        uri(),
        '--json',
      ]);
      expect(exitCode).toBe(5);
      expect(JSON.parse(stdout)).toMatchObject({
        mounted: [{ name: 'mail01', mountpoint: chunkmount.tree('mail01'), consistency: 'crash' }],
        failed: [{ name: 'nosuch', error: 'there is no VM called "nosuch"', hint: expect.any(String) }],
      });
      expect(stderr).toMatch(/warning: nosuch: there is no VM called/);
      expect(toldError(stderr).message).toBe('1 of 2 failed: nosuch');
      // One more backup than may run.
      const told = expectError(await chunkmount.run([...given, '--max-backups=1']), 3);
      expect(told.message).toBe('1 backup is running already: mail01');
      expect(told.hint).toMatch(/--max-backups/);
      await chunkmount.succeed('cleanup', '--vm=mail01,nosuch');
    });

    it('are not run with when one fails', async () => {
      const marker = chunkmount.path('ran');
      const args = ['run', '--vm=mail01,nosuch', uri(), '--', 'touch', marker];
      expect(expectError(await chunkmount.run(args), 2).message).toBe('there is no VM called "nosuch"');
      expect(fs.existsSync(marker)).toBe(false);
    });
  });

  describe('doctor', () => {
    it('says that all is there, and changes nothing', async () => {
      const before = fs.readdirSync(chunkmount.directory);
      const out = await chunkmount.succeed('doctor', uri());
      for (const name of ['node', '/dev/fuse', 'qemu-img', 'virsh', 'mount', 'flock', 'libvirt'])
        expect(out).toMatch(new RegExp(`^ok {6}${name}: \\S`, 'm'));
      expect(out).toMatch(/^ok {6}state directory: .* free$/m);
      expect(out).not.toMatch(/missing/);
      expect(fs.readdirSync(chunkmount.directory)).toEqual(before);
    });

    it('says of each thing that is missing what it is for and what mends it', async () => {
      const env = pathWithout(chunkmount.path('path'), 'virsh', 'qemu-img', 'fusermount3');
      const args = ['doctor', `--backupdir=${image}/x/y`, `--statedir=${image}`];
      const { exitCode, stdout, stderr } = await chunkmount.run(args, env);
      expect(exitCode).toBe(1);
      expect(toldError(stderr).message).toBe(
        'missing: qemu-img, virsh, fusermount3, libvirt, state directory, backup directory',
      );
      const lines = stdout.split('\n');
      for (const [name, packageName] of [
        ['qemu-img', 'qemu-utils'],
        ['virsh', 'libvirt-clients'],
        ['fusermount3', 'fuse3'],
      ]) {
        const at = lines.indexOf(`missing ${name}: ${name} is not installed`);
        expect(lines[at + 1], name).toMatch(/^ {8}needed for: \S/);
        expect(lines[at + 2], name).toBe(`        to mend it: apt-get install ${packageName}`);
      }
      const result = await chunkmount.run([...args, '--json'], env);
      expect(result.exitCode).toBe(1);
      const { checks } = JSON.parse(result.stdout) as { checks: Check[] };
      expect(checks.map(({ name }) => name)).toContain('fuse-native');
      for (const { name, state, need, fix } of checks) {
        if (state === 'missing') expect([need, fix], name).toEqual([expect.any(String), expect.any(String)]);
        else expect(['ok', 'poor']).toContain(state);
      }
    });
  });
});
