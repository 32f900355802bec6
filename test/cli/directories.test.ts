import * as fs from 'node:fs';
import { execa } from 'execa';
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest';
import { run } from '../../src/host/exec.js';
import { CLI, TestChunkmount } from '../support/chunkmount.js';
import { noise } from '../support/images.js';
import { build, fuseDevice, requireAll, root } from '../support/requirements.js';
import { expectError, traces } from './expectations.js';

const chunkmount = new TestChunkmount();
const image = chunkmount.path('disk.raw');
const given = [`--image=${image}`, '--name=demo'];

/** A user without rights. */
const NOBODY = 65534;

beforeAll(async () => {
  await requireAll(root, build, fuseDevice);
  fs.writeFileSync(image, noise(1024 * 1024, 1));
});
afterEach(() => expect(traces(chunkmount)).toEqual([]));
afterAll(() => chunkmount.close());

describe('a session of another state directory', () => {
  const elsewhere = { CHUNKMOUNT_STATEDIR: chunkmount.path('elsewhere') };

  it('is not unmounted by hand on our advice, nor passed over by cleanup', async () => {
    await chunkmount.succeed('mount', ...given);
    const mounted = await chunkmount.run(['mount', ...given], elsewhere);
    expect(mounted).toMatchObject({ exitCode: 1, stderr: expect.stringMatching(/--statedir/) });
    expect(mounted.stderr).not.toContain('umount');
    const cleaned = await chunkmount.run(['cleanup', '--name=demo'], elsewhere);
    expect(cleaned).toMatchObject({
      exitCode: 1,
      stderr: expect.stringMatching(/its tree is mounted at .*\/demo\n.*--statedir/),
    });
    await chunkmount.succeed('cleanup', '--name=demo');
    const nothing = await chunkmount.run(['cleanup', '--name=demo'], elsewhere);
    expect(nothing).toMatchObject({ exitCode: 0, stderr: expect.stringContaining('nothing to clean up') });
  });
});

describe('a backup directory that is read-only', () => {
  const directory = chunkmount.path('read-only');

  it('is refused before anything is done, and nothing stays', async () => {
    fs.mkdirSync(directory);
    await run('mount', ['-t', 'tmpfs', '-o', 'ro', 'tmpfs', directory]);
    try {
      const told = await chunkmount.run(['mount', ...given, `--backupdir=${directory}`]);
      expect(expectError(told, 1).message).toContain(`the directory ${directory} cannot be used: EROFS`);
      expect(await chunkmount.succeed('list')).toBe('');
    } finally {
      await run('umount', [directory]);
    }
  });
});

describe('a state directory', () => {
  const directory = chunkmount.path('odd');
  const odd = { CHUNKMOUNT_STATEDIR: directory };

  afterEach(() => fs.rmSync(directory));

  const expectRefusal = async () => {
    const told = expectError(await chunkmount.run(['mount', ...given], odd), 1);
    expect(told.message).toContain(`the state directory ${directory} cannot be used`);
    expect(told.hint).toMatch(/it is no directory, or a link to one that is not mounted/);
    expect((await chunkmount.run(['list'], odd)).exitCode).toBe(0);
    const { stdout } = await chunkmount.run(['doctor', '--vm=odd'], odd);
    expect(stdout).toMatch(new RegExp(`^missing state directory: ${directory} is `, 'm'));
  };

  it('that is a file is told', async () => {
    fs.writeFileSync(directory, '');
    await expectRefusal();
  });

  it('that is a link to where nothing is mounted yet is told', async () => {
    fs.symlinkSync(chunkmount.path('nowhere'), directory);
    await expectRefusal();
  });
});

describe('a current directory that is gone', () => {
  /** Runs chunkmount where there is no directory any more. */
  const runNowhere = (...args: string[]) => {
    const script = 'mkdir "$0" && cd "$0" && rmdir "$0" && exec "$@"';
    const command = ['-c', script, chunkmount.path('gone'), process.execPath, CLI, ...args];
    return execa('sh', command, { env: chunkmount.env, reject: false, stripFinalNewline: false });
  };

  it('keeps nobody from backing up', async () => {
    const told = await runNowhere('run', ...given, '--', 'true');
    expect([told.stderr, told.exitCode]).toEqual(['', 0]);
  });

  it('is told to whoever gives a path from there', async () => {
    const { exitCode, stderr } = await runNowhere('mount', ...given, '--backupdir=trees');
    expect([exitCode, stderr]).toEqual([1, expect.stringMatching(/\n {2}the current directory is gone/)]);
  });
});

describe('variables that are set to nothing', () => {
  it.each(['', 'states'])('are as good as not set; XDG_STATE_HOME=%s', async (XDG_STATE_HOME) => {
    const [home, here] = ['home', 'here'].map((name) => fs.mkdtempSync(chunkmount.path(name)));
    fs.chmodSync(chunkmount.directory, 0o711);
    for (const directory of [home!, here!]) fs.chownSync(directory, NOBODY, NOBODY);
    const env = { HOME: home!, CHUNKMOUNT_STATEDIR: '', CHUNKMOUNT_BACKUPDIR: '', XDG_STATE_HOME };
    const user = { uid: NOBODY, gid: NOBODY, cwd: here!, env };
    const { exitCode, stderr } = await execa(process.execPath, [CLI, 'unlock', '--vm=some'], user);
    expect([exitCode, stderr]).toEqual([0, expect.stringContaining('some was not locked')]);
    expect(fs.readdirSync(here!)).toEqual([]);
    expect(fs.readdirSync(`${home}/.local/state/chunkmount`)).toContain('locks');
  });
});

describe('something that is mounted over a tree', () => {
  it('is named by cleanup, and then the tree beneath it, which is dead', async () => {
    await chunkmount.succeed('mount', ...given);
    const tree = chunkmount.tree('demo');
    await run('mount', ['-t', 'tmpfs', 'tmpfs', tree]);
    for (const above of [/tmpfs \(tmpfs\) is mounted there/, /chunkmount:demo:\S+ \(fuse\.chunkmount\) is/]) {
      const told = expectError(await chunkmount.run(['cleanup', '--name=demo']), 1);
      expect(told.message).toMatch(above);
      expect(told.hint).toContain(`umount ${tree}`);
      await run('umount', [tree]);
    }
    await chunkmount.succeed('cleanup', '--name=demo');
  });
});
