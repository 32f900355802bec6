import * as fs from 'node:fs';
import * as path from 'node:path';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { run } from '../../../src/host/exec.js';
import { listMounts } from '../../../src/host/mountinfo.js';
import { CLI, TestChunkmount } from '../../support/chunkmount.js';
import { noise } from '../../support/images.js';
import { build, fuseDevice, program, requireAll, root } from '../../support/requirements.js';

/** nobody and nogroup: what Debian has for users without rights. */
const USER = 65534;
const DEVICE = '/dev/fuse';

/**
 * An ordinary user, who may read any file: the checkout may lie in root's home. It is not enough to open /dev/fuse, to mount or to
 * write anywhere.
 */
const AS_USER = [
  ...[`--reuid=${USER}`, `--regid=${USER}`, '--clear-groups'],
  ...['--inh-caps=+dac_read_search', '--ambient-caps=+dac_read_search', '--'],
];

describe('an ordinary user', () => {
  let chunkmount: TestChunkmount;
  let image: string;
  let deviceMode: number;

  beforeAll(async () => {
    await requireAll(
      ...[root, fuseDevice, build, program('setpriv', 'util-linux'), program('xxhsum', 'xxhash')],
      ...[program('fusermount', 'fuse3'), program('fusermount3', 'fuse3'), program('qemu-img', 'qemu-utils')],
    );
    deviceMode = fs.statSync(DEVICE).mode & 0o777;
  });
  afterAll(() => fs.chmodSync(DEVICE, deviceMode));

  beforeEach(() => {
    // What Debian's udev rules do.
    fs.chmodSync(DEVICE, 0o666);
    chunkmount = new TestChunkmount();
    fs.chownSync(chunkmount.directory, USER, USER);
    image = chunkmount.path('disk.raw');
    fs.writeFileSync(image, noise(1024 * 1024 + 512, 1));
  });
  afterEach(() => chunkmount.close());

  /** Runs a program as that user; any exit code of ours is an answer. */
  const asUser = (...command: string[]) =>
    run('setpriv', [...AS_USER, ...command], { env: chunkmount.env, accept: [1, 2, 3, 4, 5], cwd: '/' });
  const cli = (...args: string[]) => asUser(process.execPath, CLI, ...args);
  const given = () => ['mount', `--image=${image}`, '--name=demo'];
  const mount = (...options: string[]) => cli(...given(), ...options);

  function expectNothingLeft(): void {
    expect(listMounts().filter(({ mountpoint }) => mountpoint.startsWith(chunkmount.directory))).toEqual([]);
    const filesIn = (directory: string) => (fs.existsSync(directory) ? fs.readdirSync(directory) : []);
    expect(filesIn(chunkmount.backupDirectory)).toEqual([]);
    expect(filesIn(path.join(chunkmount.stateDirectory, 'sessions'))).toEqual([]);
  }

  it('mounts an image, and has the tree to himself', async () => {
    const { exitCode, stdout, stderr } = await mount('--debug');
    expect([exitCode, stdout], stderr).toEqual([0, `${chunkmount.tree('demo')}\n`]);
    expect(stderr).toContain('transport: native (mounting /dev/fuse directly takes root)');
    const tree = chunkmount.tree('demo');
    const script = 'cd "$1" && xxhsum --quiet -c disk0.xxh64 && stat -c "%u %g %a" . disk0/000000/00000000';
    expect((await asUser('sh', '-c', script, 'sh', tree)).stdout).toBe(
      `${USER} ${USER} 500\n${USER} ${USER} 400\n`,
    );
    // Root is another user here: see allow_other in mount.fuse(8).
    expect(() => fs.readdirSync(tree)).toThrow('EACCES');
    expect((await cli('cleanup', '--name=demo')).exitCode).toBe(0);
    expectNothingLeft();
  });

  it('cleans up after root has unmounted', async () => {
    expect((await mount()).exitCode).toBe(0);
    await run('umount', [chunkmount.tree('demo')]);
    expect((await cli('cleanup', '--name=demo')).exitCode).toBe(0);
    expectNothingLeft();
  });

  it('runs a command on the tree', async () => {
    const image0 = `--image=${image}`;
    const command = ['sh', '-c', 'ls "$CHUNKMOUNT_TREE"; exit 4'];
    const { exitCode, stdout } = await cli('run', image0, '--name=demo', '--', ...command);
    expect([exitCode, stdout]).toEqual([4, 'disk0\ndisk0.xxh64\nmanifest.json\n']);
    expectNothingLeft();
  });

  it('does not get the kernel transport', async () => {
    const { exitCode, stderr } = await mount('--transport=kernel');
    expect(exitCode).toBe(2);
    expect(stderr).toContain('the kernel transport is not possible: mounting /dev/fuse directly takes root');
    expectNothingLeft();
  });

  it('is told what may keep fusermount from mounting', async () => {
    const { exitCode, stderr } = await asUser('setpriv', '--no-new-privs', process.execPath, CLI, ...given());
    expect([exitCode, stderr]).toEqual([
      1,
      expect.stringMatching(/by the native transport\n {2}may fusermount mount\?.*NoNewPrivileges/),
    ]);
    expectNothingLeft();
  });

  it('is told when /dev/fuse is closed', async () => {
    fs.chmodSync(DEVICE, 0o600);
    const { exitCode, stderr } = await mount();
    expect(exitCode).toBe(1);
    expect(stderr).toContain('/dev/fuse is closed to this user\n  let users mount: chmod 0666 /dev/fuse');
    expectNothingLeft();
  });

  it('is told when fusermount could not unmount again', async () => {
    const etc = chunkmount.path('etc');
    await run('cp', ['-a', '/etc', etc]);
    fs.rmSync(path.join(etc, 'mtab'), { force: true });
    const hide = ['--mount', 'sh', '-c', 'mount --bind "$0" /etc && exec setpriv "$@"', etc];
    const args = [...hide, ...AS_USER, process.execPath, CLI, ...given()];
    const { exitCode, stderr } = await run('unshare', args, { env: chunkmount.env, accept: [1] });
    expect([exitCode, stderr]).toEqual([
      1,
      expect.stringMatching(/^chunkmount: error: \/etc\/mtab is not there.*\n {2}make it, .* ln -s /),
    ]);
    expectNothingLeft();
  });

  it('lets others in if the administrator allows it, and else is told so', async () => {
    const file = '/etc/fuse.conf';
    const allowed = fs.existsSync(file) && /^\s*user_allow_other\s*$/m.test(fs.readFileSync(file, 'utf8'));
    const { exitCode, stderr } = await mount('--allow-other');
    if (allowed) {
      expect(exitCode, stderr).toBe(0);
      expect(fs.readdirSync(chunkmount.tree('demo'))).toContain('disk0');
    } else {
      expect(exitCode).toBe(1);
      expect(stderr).toContain('--allow-other is forbidden to ordinary users in /etc/fuse.conf');
      expectNothingLeft();
    }
  });

  it('is told when libfuse’s helper is not there', async () => {
    const env = { ...chunkmount.env, PATH: chunkmount.path('empty') };
    fs.mkdirSync(env.PATH);
    const tools = ['flock', 'qemu-img', 'qemu-storage-daemon'];
    for (const tool of tools)
      fs.symlinkSync((await run('which', [tool])).stdout.trim(), path.join(env.PATH, tool));
    const args = [...AS_USER, process.execPath, CLI, 'mount', `--image=${image}`, '--name=demo'];
    const { exitCode, stderr } = await run((await run('which', ['setpriv'])).stdout.trim(), args, {
      env,
      accept: [1],
    });
    expect([exitCode, stderr]).toEqual([
      1,
      expect.stringContaining('fusermount is not installed\n  install it: apt-get install fuse3'),
    ]);
    expectNothingLeft();
  });
});
