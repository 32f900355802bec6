import * as fs from 'node:fs';
import * as path from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { run } from '../../src/host/exec.js';
import { mountAt } from '../../src/host/mountinfo.js';
import { findProcesses } from '../../src/host/process-list.js';
import { useDemoImage } from './demo-image.js';
import { eventually, expectError, traces } from './expectations.js';

/** Whatever dies, and whenever: cleanup takes everything away, says when a backup is not whole, and can be run twice. */
describe('after a crash', () => {
  const { chunkmount, marker, tree, chunk, given, cleanup } = useDemoImage();

  /** The processes of the session: the daemon, and who holds the image. */
  function processes(name: string): number[] {
    return findProcesses((argv) =>
      argv.some((arg) => arg.includes(`${chunkmount.stateDirectory}/sessions/demo`)),
    ).flatMap(({ pid }) => (fs.readFileSync(`/proc/${pid}/cmdline`, 'utf8').includes(name) ? [pid] : []));
  }

  async function kill(name: string): Promise<void> {
    const pids = processes(name);
    expect(pids).toHaveLength(1);
    process.kill(pids[0]!, 'SIGKILL');
    await eventually(() => processes(name).length === 0);
  }

  async function state(): Promise<string | undefined> {
    const { sessions } = JSON.parse(await chunkmount.succeed('list', '--json'));
    return sessions[0]?.state;
  }

  async function expectNothingToDo(): Promise<void> {
    expect(await cleanup()).toEqual({
      exitCode: 0,
      stdout: '',
      stderr: 'chunkmount: demo has no session: there is nothing to clean up\n',
    });
  }

  describe('of the daemon', () => {
    beforeEach(() => chunkmount.succeed(...given));

    it.each([
      ['it alone', ['daemon.js']],
      ['it and who holds the image', ['daemon.js', 'qemu-storage-daemon']],
    ])('(%s), reads fail, list says so, and cleanup says that the backup is not whole', async (_, names) => {
      fs.readFileSync(chunk);
      for (const name of names) await kill(name);
      for (const read of [() => fs.readFileSync(chunk), () => fs.readdirSync(tree)])
        expect(read).toThrow(/ENOTCONN|ECONNABORTED/);
      expect(await state()).toBe('dead');
      expect(await chunkmount.succeed('list')).toMatch(/^demo +dead +\//m);
      const refused = expectError(await chunkmount.run(given), 3);
      expect(refused.hint).toBe('end it first: chunkmount cleanup --name=demo');
      const told = expectError(await cleanup(), 1);
      expect(told).toEqual({
        message:
          'the daemon of demo died before its tree was unmounted: what was copied is not a whole backup',
        hint: 'all is cleaned up; back it up again',
      });
      expect(traces(chunkmount)).toEqual([]);
      await expectNothingToDo();
    });
  });

  describe('of the command', () => {
    const bin = chunkmount.path('bin');

    /**
     * A real program of that name, first on PATH, which never ends: it is stuck before or after its work, and the marker then has its
     * process number.
     */
    function stuck(name: string, when: 'before' | 'after'): { PATH: string } {
      fs.mkdirSync(bin, { recursive: true });
      const wait = `echo $$ >'${marker}.new'; mv '${marker}.new' '${marker}'; while :; do read -r _ </dev/zero; done`;
      const work = when === 'after' ? `PATH=\${PATH#*:} ${name} "$@"\n` : '';
      fs.writeFileSync(path.join(bin, name), `#!/bin/sh\n${work}${wait}\n`, { mode: 0o755 });
      return { PATH: `${bin}:${process.env.PATH}` };
    }

    /** Starts it and ends it, and what it waits for, with SIGKILL while it is stuck. Returns the state that it had then. */
    async function killed(args: readonly string[], env: { PATH: string }): Promise<string | undefined> {
      const running = chunkmount.start(args, env);
      await eventually(() => fs.existsSync(marker));
      const before = await state();
      running.kill('SIGKILL');
      expect(await running).toMatchObject({ signal: 'SIGKILL' });
      process.kill(Number(fs.readFileSync(marker, 'utf8')), 'SIGKILL');
      return before;
    }

    afterEach(() => fs.rmSync(bin, { recursive: true }));

    it.each([
      ['flock', 'after'],
      ['qemu-storage-daemon', 'before'],
      ['qemu-storage-daemon', 'after'],
      ['qemu-img', 'before'],
      ['mount', 'before'],
      ['mount', 'after'],
    ] as const)('mount, at %s, %s its work, cleanup undoes what it did', async (name, when) => {
      await killed(given, stuck(name, when));
      if (name !== 'flock') {
        expect(await state()).toBe('incomplete');
        expect(expectError(await chunkmount.run(given), 3).message).toMatch(/was cut off while it began$/);
      }
      expect((await cleanup()).exitCode).toBe(0);
      expect(traces(chunkmount)).toEqual([]);
    });

    it.each(['before', 'after'] as const)(
      'cleanup, %s it has unmounted, the next one goes on',
      async (when) => {
        await chunkmount.succeed(...given);
        const before = await killed(['cleanup', '--name=demo'], stuck('umount', when));
        expect(before).toBe(when === 'before' ? 'mounted' : 'working');
        expect(await state()).toBe(when === 'before' ? 'mounted' : 'dead');
        expect((await cleanup()).exitCode).toBe(0);
        expect(traces(chunkmount)).toEqual([]);
        await expectNothingToDo();
      },
    );

    it('cleanup that is asked to stop ends with 143, and the next one does what is left', async () => {
      await chunkmount.succeed(...given);
      fs.mkdirSync(bin);
      const slow = `#!/bin/sh\n: >'${marker}'; sleep 0.5\nPATH=\${PATH#*:} exec umount "$@"\n`;
      fs.writeFileSync(path.join(bin, 'umount'), slow, { mode: 0o755 });
      const running = chunkmount.start(['cleanup', '--name=demo'], { PATH: `${bin}:${process.env.PATH}` });
      await eventually(() => fs.existsSync(marker));
      running.kill('SIGTERM');
      expect(await running).toMatchObject({ exitCode: 143, stdout: '' });
      expect((await cleanup()).exitCode).toBe(0);
    });
  });

  it('of the daemon shows while a run that keeps the lock goes on', async () => {
    const running = chunkmount.start(['run', ...given, '--keep-lock', '--', 'sleep', '60']);
    await eventually(async () => (await state()) === 'mounted');
    await kill('daemon.js');
    expect(await state()).toBe('dead');
    running.kill('SIGTERM');
    expect((await running).exitCode).toBe(143);
    await chunkmount.succeed('unlock', '--name=demo');
    await cleanup();
  });

  it('nothing is wrong with a tree that was unmounted by hand', async () => {
    await chunkmount.succeed(...given);
    await run('umount', [tree]);
    await eventually(() => processes('daemon.js').length === 0);
    expect(await state()).toBe('dead');
    expect(await cleanup()).toEqual({ exitCode: 0, stdout: '', stderr: '' });
  });

  describe('somebody who has a file of the tree open', () => {
    it('is waited for a few seconds', async () => {
      await chunkmount.succeed(...given);
      const fd = fs.openSync(chunk, 'r');
      const running = chunkmount.run(['cleanup', '--name=demo']);
      await new Promise((resolve) => setTimeout(resolve, 1_500));
      expect(mountAt(tree)).toBeDefined();
      fs.closeSync(fd);
      expect(await running).toEqual({ exitCode: 0, stdout: '', stderr: '' });
    });

    it('is named, and loses it', async () => {
      await chunkmount.succeed(...given);
      const fd = fs.openSync(chunk, 'r');
      try {
        const { exitCode, stderr } = await cleanup();
        expect(stderr).toMatch(
          new RegExp(
            `^chunkmount: warning: ${tree} is still used by .*\\(${process.pid}\\).*; it is taken away`,
          ),
        );
        expect(exitCode).toBe(0);
        expect(() => fs.readSync(fd, Buffer.alloc(1))).toThrow(/ENOTCONN|EIO|ECONNABORTED/);
      } finally {
        fs.closeSync(fd);
      }
      await expectNothingToDo();
    });
  });

  describe('a state directory', () => {
    const directory = chunkmount.path('other');
    const env = { CHUNKMOUNT_STATEDIR: path.join(directory, 'state') };
    const zeros = path.join(directory, 'zeros');

    /** Until nothing more fits. */
    async function fill(): Promise<void> {
      await run('dd', ['if=/dev/zero', `of=${zeros}`, 'bs=4096'], { accept: [1] });
    }

    beforeEach(async () => {
      fs.mkdirSync(directory);
      await run('mount', ['-t', 'tmpfs', '-o', 'size=1m', 'tmpfs', directory]);
    });

    afterEach(async () => {
      await run('umount', [directory]);
      fs.rmdirSync(directory);
    });

    it('that cannot be written is named by all who need it', async () => {
      await run('mount', ['-o', 'remount,ro', directory]);
      for (const args of [given, ['cleanup', '--name=demo'], ['unlock', '--name=demo']]) {
        const told = expectError(await chunkmount.run(args, env), 1);
        expect(told.message).toContain(
          `the state directory ${env.CHUNKMOUNT_STATEDIR} cannot be used: EROFS`,
        );
        expect(told.hint).toMatch(/^make its file system writable .*--statedir/);
      }
    });

    it('that is full fails the mount, and leaves nothing of it', async () => {
      fs.mkdirSync(env.CHUNKMOUNT_STATEDIR);
      await fill();
      const told = expectError(await chunkmount.run(given, env), 1);
      expect(told.message).toMatch(/ENOSPC/);
      expect(fs.readdirSync(path.join(env.CHUNKMOUNT_STATEDIR, 'sessions'))).toEqual([]);
      fs.rmSync(zeros);
      expect((await chunkmount.run(given, env)).exitCode).toBe(0);
      expect((await chunkmount.run(['cleanup', '--name=demo'], env)).exitCode).toBe(0);
    });

    it('that is full does not keep cleanup from its work', async () => {
      expect((await chunkmount.run(given, env)).exitCode).toBe(0);
      await fill();
      const told = expectError(await chunkmount.run(['cleanup', '--name=demo'], env), 1);
      // The daemon could not save its index.
      expect(told.hint).toMatch(/all is cleaned up/);
      expect(fs.readdirSync(path.join(env.CHUNKMOUNT_STATEDIR, 'sessions'))).toEqual([]);
      expect(mountAt(tree)).toBeUndefined();
    });
  });
});
