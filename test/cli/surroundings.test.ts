import * as fs from 'node:fs';
import { execa } from 'execa';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { CLI, TestChunkmount } from '../support/chunkmount.js';
import { noise } from '../support/images.js';
import { build, fuseDevice, program, requireAll, root } from '../support/requirements.js';
import { expectError, traces } from './expectations.js';

const chunkmount = new TestChunkmount();

const image = chunkmount.path('disk.raw');
const given = [`--image=${image}`, '--name=demo'];

beforeAll(async () => {
  await requireAll(root, fuseDevice, build, program('unshare', 'util-linux'), program('losetup', 'mount'));
  await requireAll(program('filefrag', 'e2fsprogs'), program('python3'));
  fs.writeFileSync(image, noise(1024 * 1024, 1));
});
afterAll(() => chunkmount.close());

/** Runs chunkmount after some commands of a shell, or through the program that they end with. */
async function runAfter(script: string, ...args: string[]) {
  const command = ['-c', `${script} "$@"`, 'sh', process.execPath, CLI, ...args];
  const options = { env: chunkmount.env, reject: false, stdin: 'ignore', stripFinalNewline: false } as const;
  const { exitCode, stdout, stderr } = await execa('/bin/sh', command, options);
  return { exitCode, stdout, stderr };
}

it.each([[['list', '--json']], [['list']], [['doctor', '--json']]])(
  'a result that cannot be written is a failure: %j',
  async (args) => {
    fs.mkdirSync(`${chunkmount.stateDirectory}/sessions/some`, { recursive: true });
    const command = ['-c', 'exec "$@" >/dev/full', 'sh', process.execPath, CLI, ...args];
    const { exitCode, stderr } = await execa('sh', command, { env: chunkmount.env, reject: false });
    fs.rmSync(`${chunkmount.stateDirectory}/sessions/some`, { recursive: true });
    expect(stderr).toContain('the result cannot be written: ENOSPC');
    expect(exitCode).toBe(1);
  },
);

describe("with cron's PATH", () => {
  it.each(['/usr/bin:/bin', undefined])('programs of the system are found: %s', async (PATH) => {
    const { stdout } = await execa(process.execPath, [CLI, 'doctor', '--json'], {
      env: { ...chunkmount.env, ...(PATH === undefined ? {} : { PATH }) },
      extendEnv: false,
      reject: false,
      stdin: 'ignore',
    });
    const { checks } = JSON.parse(stdout) as { checks: { name: string; state: string }[] };
    const missing = checks.filter(({ state }) => state !== 'ok').map(({ name }) => name);
    expect(missing).not.toContain('losetup');
    expect(missing).not.toContain('filefrag');
    expect(checks.map(({ name }) => name)).toContain('losetup');
  });
});

describe('an empty PATH', () => {
  it('is as good as none, and leads nobody to what lies in the current directory', async () => {
    const here = chunkmount.path('here');
    fs.mkdirSync(here);
    fs.writeFileSync(`${here}/flock`, '#!/bin/sh\nexit 1\n', { mode: 0o755 });
    const script = `cd ${here} && export PATH= && exec`;
    const told = await runAfter(script, 'run', ...given, '--', 'true');
    expect([told.stderr, told.exitCode]).toEqual(['', 0]);
  });
});

describe('a limit of the size of files', () => {
  it('is named by whoever meets it', async () => {
    const told = expectError(await runAfter('ulimit -f 0; exec', 'mount', ...given), 1);
    expect(told.message).toMatch(/EFBIG.*demo\.json/);
    expect(told.hint).toContain('ulimit -f');
    expect(traces(chunkmount)).toEqual([]);
  });
});

describe('a /proc of other processes', () => {
  it('is told', async () => {
    const told = expectError(await runAfter('exec unshare --pid --fork', 'mount', ...given), 1);
    expect(told.message).toMatch(/^\/proc does not show this process/);
    expect(told.hint).toContain('mount -t proc');
  });
});

describe('a mount namespace of its own', () => {
  const unshared = (...args: string[]) => runAfter('exec unshare --mount', ...args);

  it('is a reason to warn of the empty directory that others see', async () => {
    const { exitCode, stderr } = await unshared('mount', ...given);
    expect([exitCode, fs.readdirSync(chunkmount.tree('demo'))]).toEqual([0, []]);
    expect(stderr).toMatch(/^chunkmount: warning: .* elsewhere \S+\/demo is an empty directory/);
    await chunkmount.succeed('cleanup', '--name=demo');
    expect(traces(chunkmount)).toEqual([]);
  });

  it('is a reason to warn of the images that others do not see', async () => {
    const [copy, mountpoint] = [chunkmount.path('copy'), chunkmount.path('images')];
    await chunkmount.succeed('run', ...given, '--', 'sh', '-c', `cp -r "$CHUNKMOUNT_TREE" '${copy}'`);
    fs.mkdirSync(mountpoint);
    const both = `'"$@" && exec "$1" "$2" image-unmount ${mountpoint}' sh`;
    const told = await runAfter(`exec unshare --mount sh -c ${both}`, 'image-mount', copy, mountpoint);
    expect([told.exitCode, told.stdout]).toEqual([0, `${mountpoint}/disk0.img\n`]);
    expect(told.stderr).toContain(`: elsewhere ${mountpoint} is an empty directory;`);
  });

  it('does not matter to a command that runs in it', async () => {
    const told = await unshared('run', ...given, '--', 'true');
    expect([told.stderr, told.exitCode]).toEqual(['', 0]);
  });

  it('is not what a session that is seen by all has', async () => {
    const { stderr } = await runAfter('exec', 'mount', ...given);
    await chunkmount.succeed('cleanup', '--name=demo');
    expect(stderr).toBe('');
  });
});

describe('a current directory that this user may not enter', () => {
  const home = chunkmount.path('home');
  const user = 'exec setpriv --reuid=65534 --regid=65534 --clear-groups --inh-caps=-all';

  beforeAll(() => {
    fs.mkdirSync(home, { mode: 0o700 });
    for (const directory of [chunkmount.stateDirectory, chunkmount.backupDirectory])
      fs.mkdirSync(directory, { recursive: true });
    fs.chmodSync(chunkmount.directory, 0o711);
  });

  it('keeps nobody from what needs no file of it', async () => {
    const states = chunkmount.path('states');
    fs.mkdirSync(states);
    fs.chownSync(states, 65534, 65534);
    const args = ['unlock', '--name=demo', `--statedir=${states}`];
    const { exitCode, stderr } = await runAfter(`cd ${home} && ${user}`, ...args);
    expect([exitCode, stderr]).toEqual([0, 'chunkmount: demo was not locked\n']);
  });
});

describe('a user whom the system does not know', () => {
  const number = 54321;
  const user = `exec env -u HOME setpriv --reuid=${number} --regid=${number} --clear-groups --inh-caps=-all`;
  const asUser = (...args: string[]) =>
    runAfter(`unset CHUNKMOUNT_STATEDIR CHUNKMOUNT_BACKUPDIR; ${user}`, ...args);

  it('has no sessions', async () => {
    const { exitCode, stderr } = await asUser('list');
    expect([exitCode, stderr]).toEqual([0, 'chunkmount: there are no sessions\n']);
  });

  it('is called by number', async () => {
    const { stdout } = await asUser('doctor', '--vm=odd');
    expect(stdout).toMatch(new RegExp(`^poor {4}user: ${number}$`, 'm'));
  });

  it('is told what to give when a session cannot be begun', async () => {
    const told = expectError(await asUser('mount', ...given), 1);
    expect(told.message).toMatch(/^the state directory .* cannot be used/);
    expect(told.hint).toContain('--statedir');
  });
});

/** Runs a command on a terminal of its own, which is gone when it has made the file; prints how the command ended. */
const HANG_UP = `
import os, pty, sys, time
pid, terminal = pty.fork()
if pid == 0: os.execvp(sys.argv[2], sys.argv[2:])
while not os.path.exists(sys.argv[1]): time.sleep(0.05)
os.close(terminal)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
`;

describe('a terminal that hangs up', () => {
  it('ends run with the exit code of the signal, after cleaning up', async () => {
    const marker = chunkmount.path('marker');
    const command = ['run', ...given, '--', 'sh', '-c', `touch ${marker}; sleep 60`];
    const args = ['-c', HANG_UP, marker, process.execPath, CLI, ...command];
    const { stdout } = await execa('python3', args, {
      env: chunkmount.env,
      stdin: 'ignore',
      timeout: 60_000,
    });
    expect(stdout).toBe('129');
    expect(traces(chunkmount)).toEqual([]);
  });
});
