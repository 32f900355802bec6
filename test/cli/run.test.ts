import * as fs from 'node:fs';
import * as path from 'node:path';
import { execa } from 'execa';
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest';
import { mountAt } from '../../src/host/mountinfo.js';
import { TestChunkmount } from '../support/chunkmount.js';
import { fuseDevice, program, requireAll, root } from '../support/requirements.js';
import { eventually, expectError, toldError, traces } from './expectations.js';

/** Mounts, runs, cleans up: whatever the command does, and whatever is done to us. */
describe('chunkmount run', () => {
  const chunkmount = new TestChunkmount();
  const image = chunkmount.path('disk.raw');
  const marker = chunkmount.path('marker');
  const tree = chunkmount.tree('demo');
  const given = [`--image=${image}`, '--name=demo'];

  beforeAll(async () => {
    await requireAll(root, fuseDevice, program('qemu-img', 'qemu-utils'));
    fs.writeFileSync(image, Buffer.alloc(300_000, 7));
  });

  afterEach(() => {
    fs.rmSync(marker, { force: true });
    expect(traces(chunkmount)).toEqual([]);
  });

  afterAll(() => chunkmount.close());

  const run = (...command: string[]) => chunkmount.run(['run', ...given, '--', ...command]);
  /** The command makes the marker, and goes on until it is ended. */
  const waiting = (trap = '') => ['sh', '-c', `${trap} : >'${marker}'; while :; do sleep 0.1; done`];
  const markerIsThere = async () => fs.existsSync(marker);

  it('shows the tree to the command, whose output is all that is on stdout', async () => {
    const script = 'echo "$CHUNKMOUNT_TREE|$CHUNKMOUNT_TREES"; ls "$CHUNKMOUNT_TREE"; echo oops >&2; cat';
    const result = await chunkmount.run(['run', '--json', ...given, '--', 'sh', '-c', script]);
    expect(result).toEqual({
      exitCode: 0,
      stdout: `${tree}|${tree}\ndisk0\ndisk0.xxh64\nmanifest.json\n`,
      stderr: 'oops\n',
    });
  });

  describe('when another command takes the tree away', () => {
    const told = /the tree of demo was taken away by another command[\s\S]*may not be whole/;
    /** Runs a command that succeeds when it is let go, after something else was done. */
    async function whileRunning(work: () => Promise<unknown>) {
      const letGo = chunkmount.path('let-go');
      const script = `: >'${marker}'; while [ ! -e '${letGo}' ]; do sleep 0.1; done`;
      const running = chunkmount.start(['run', ...given, '--', 'sh', '-c', script]);
      await eventually(markerIsThere);
      await work();
      fs.writeFileSync(letGo, '');
      const result = await running;
      fs.rmSync(letGo);
      return result;
    }

    it('fails', async () => {
      const result = await whileRunning(() => chunkmount.succeed('cleanup', '--name=demo'));
      expect(result).toMatchObject({ exitCode: 1, stderr: expect.stringMatching(told) });
    });

    it('fails, and leaves the session alone that was begun since', async () => {
      const result = await whileRunning(async () => {
        await chunkmount.succeed('cleanup', '--name=demo');
        await chunkmount.succeed('mount', ...given);
      });
      expect(result).toMatchObject({ exitCode: 1, stderr: expect.stringMatching(told) });
      expect(fs.existsSync(`${tree}/manifest.json`)).toBe(true);
      await chunkmount.succeed('cleanup', '--name=demo');
    });

    it('fails, and cleans up what an unmount leaves', async () => {
      const result = await whileRunning(() => execa('umount', [tree]));
      expect(result).toMatchObject({ exitCode: 1, stderr: expect.stringMatching(told) });
    });
  });

  it('mount --foreground that a cleanup ends has ended well', async () => {
    const running = chunkmount.start(['mount', '--foreground', ...given]);
    await eventually(async () => fs.existsSync(`${tree}/manifest.json`));
    await chunkmount.succeed('cleanup', '--name=demo');
    expect(await running).toMatchObject({ exitCode: 0, stderr: '' });
  });

  it('gives the command its arguments as they are', async () => {
    const { stdout } = await run('printf', '%s\n', '--json', '-n', '', 'a b', '--', '$HOME');
    expect(stdout).toBe('--json\n-n\n\na b\n--\n$HOME\n');
  });

  it.each([1, 7, 255])('ends with the exit code %i of the command', async (code) => {
    expect(await run('sh', '-c', `exit ${code}`)).toEqual({ exitCode: code, stdout: '', stderr: '' });
  });

  it('ends with 128 + n when signal n ended the command', async () => {
    expect(await run('sh', '-c', 'kill -9 $$')).toMatchObject({ exitCode: 137 });
  });

  it.each([
    ['is not there', () => 'nosuchcommand'],
    ['cannot be executed', () => image],
    ['is a directory', () => '/'],
  ])('fails when the command %s', async (_, command) => {
    const told = expectError(await run(command()), 1);
    expect(told.message).toBe(`the command ${command()} cannot be run`);
  });

  it('does not run the command when there is no tree', async () => {
    const args = ['run', `--image=${chunkmount.path('nosuch.raw')}`, '--name=demo', '--'];
    expectError(await chunkmount.run([...args, 'touch', marker]), 1);
    expect(await markerIsThere()).toBe(false);
  });

  it.each([
    ['SIGTERM', 143],
    ['SIGINT', 130],
    ['SIGHUP', 129],
  ] as const)('ends the command and cleans up when %s comes', async (signal, code) => {
    const running = chunkmount.start(['run', ...given, '--', ...waiting()]);
    await eventually(markerIsThere);
    running.kill(signal);
    const { exitCode, stderr } = await running;
    expect(exitCode).toBe(code);
    expect(String(stderr)).toMatch(new RegExp(`^chunkmount: ${signal}: stopping and cleaning up`));
  });

  it('says that it was ended although the command took the signal well', async () => {
    const running = chunkmount.start(['run', ...given, '--', ...waiting("trap 'exit 0' TERM;")]);
    await eventually(markerIsThere);
    running.kill('SIGTERM');
    expect(await running).toMatchObject({ exitCode: 143 });
  });

  it('leaves the cleanup to cleanup when a second signal comes', async () => {
    const running = chunkmount.start(['run', ...given, '--', ...waiting("trap '' TERM;")]);
    await eventually(markerIsThere);
    running.kill('SIGINT');
    await new Promise((resolve) => setTimeout(resolve, 300));
    running.kill('SIGTERM');
    const { exitCode, stderr } = await running;
    expect({ exitCode, stderr }).toMatchObject({
      exitCode: 130,
      stderr: expect.stringContaining('chunkmount cleanup'),
    });
    expect(mountAt(tree)).toBeDefined();
    await chunkmount.succeed('cleanup', '--name=demo');
  });

  describe('when a signal comes while it mounts', () => {
    const bin = chunkmount.path('bin');

    /** A real program of that name, first on PATH, which waits after or before it does its work. */
    function slow(name: string, when: 'before' | 'after'): Record<string, string> {
      fs.mkdirSync(bin, { recursive: true });
      const work = `PATH=\${PATH#*:} ${name} "$@"`;
      const wait = `: >'${marker}'; sleep 60`;
      const lines = when === 'before' ? [wait, work] : [work, wait];
      fs.writeFileSync(path.join(bin, name), `#!/bin/sh\n${lines.join('\n')}\n`, { mode: 0o755 });
      return { PATH: `${bin}:${process.env.PATH}` };
    }

    afterEach(() => fs.rmSync(bin, { recursive: true }));

    it.each([
      ['qemu-storage-daemon', 'before'],
      ['qemu-storage-daemon', 'after'],
      ['qemu-img', 'before'],
      ['mount', 'before'],
      ['mount', 'after'],
    ] as const)('leaves nothing: %s, %s its work', async (name, when) => {
      const running = chunkmount.start(['run', ...given, '--', 'true'], slow(name, when));
      await eventually(markerIsThere);
      running.kill('SIGINT');
      expect(await running).toMatchObject({ exitCode: 130, stdout: '' });
    });
  });

  it('fails when the daemon died meanwhile, whatever the command says of it', async () => {
    const kill = `kill -9 $(pgrep -f '${chunkmount.stateDirectory}/sessions/demo$')`;
    const told = expectError(await run('sh', '-c', kill), 1);
    expect(told.message).toMatch(/daemon of demo died.*not a whole backup/);
    const { exitCode, stderr } = await run('sh', '-c', `${kill}; exit 9`);
    expect(exitCode).toBe(9);
    expect(stderr).toMatch(/warning: the daemon of demo died/);
  });

  it('fails when the image was cut off meanwhile, although the command did not notice', async () => {
    const script = `: >'${image}'; cat "$CHUNKMOUNT_TREE"/disk0/*/* >/dev/null; exit 0`;
    const { exitCode, stderr } = await chunkmount.run(['run', ...given, '--', 'sh', '-c', script]);
    fs.writeFileSync(image, Buffer.alloc(300_000, 7));
    expect(exitCode).toBe(1);
    expect(toldError(stderr).message).toMatch(/disk.raw was written by another program/);
  });

  it('cleans up although nobody can read what it says', async () => {
    const running = chunkmount.start(['run', ...given, '--', ...waiting()]);
    await eventually(markerIsThere);
    running.stderr?.destroy();
    running.stdout?.destroy();
    running.kill('SIGHUP');
    expect(await running).toMatchObject({ exitCode: 129 });
  });
});
