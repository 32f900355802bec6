import * as fs from 'node:fs';
import * as path from 'node:path';
import { gunzipSync } from 'node:zlib';
import { execa } from 'execa';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { run } from '../../src/host/exec.js';
import { TestChunkmount } from '../support/chunkmount.js';
import { noise } from '../support/images.js';
import { fuseDevice, program, requireAll, root } from '../support/requirements.js';

const ROOT = path.resolve(import.meta.dirname, '../..');
const PATH = '/usr/sbin:/usr/bin:/sbin:/bin';
const STATE = '/var/lib/chunkmount';
const TREE = '/var/lib/libvirt/backup/demo';

/**
 * The package is installed into a copy of this machine: an overlay on its root file system, with a dpkg that knows what is installed here.
 * So its dependencies are checked, and nothing of the machine changes.
 */
describe('the Debian package', () => {
  const work = new TestChunkmount();
  const layers = work.path('layers');
  const copy = path.join(layers, 'root');
  let deb: string;

  beforeAll(async () => {
    await requireAll(
      root,
      fuseDevice,
      program('dpkg-deb', 'dpkg'),
      program('chroot', 'coreutils'),
      program('man', 'man-db'),
      program('mandoc'),
    );
    const { stdout } = await execa('scripts/package', ['--built', work.directory], { cwd: ROOT });
    deb = stdout;
    fs.mkdirSync(layers);
    await run('mount', ['-t', 'tmpfs', 'tmpfs', layers]);
    for (const name of ['root', 'upper', 'work']) fs.mkdirSync(path.join(layers, name));
    const options = `lowerdir=/,upperdir=${layers}/upper,workdir=${layers}/work`;
    await run('mount', ['-t', 'overlay', '-o', options, 'overlay', copy]);
    for (const name of ['proc', 'sys', 'dev'])
      await run('mount', ['--rbind', `/${name}`, path.join(copy, name)]);
    fs.writeFileSync(path.join(copy, 'disk.raw'), noise(1_000_000, 3));
    fs.copyFileSync(deb, path.join(copy, 'package.deb'));
  });

  afterAll(async () => {
    if (fs.existsSync(path.join(copy, 'usr/bin/chunkmount'))) await inside('chunkmount', 'cleanup', '--all');
    if (!fs.existsSync(layers)) return;
    // What is mounted in /dev and the like is the machine's.
    await run('mount', ['--make-rprivate', layers]);
    await run('umount', ['--recursive', '--lazy', layers]);
    fs.rmSync(work.directory, { recursive: true });
  });

  function inside(...command: string[]) {
    const env = { PATH, HOME: '/root', LC_ALL: 'C', MANPAGER: 'cat' };
    return execa('chroot', [copy, ...command], {
      env,
      extendEnv: false,
      cwd: '/',
      reject: false,
      timeout: 60_000,
    });
  }

  async function isInstalled(name: string): Promise<boolean> {
    const { stdout } = await inside('dpkg-query', '--status', name);
    return /^Status: install ok installed$/m.test(stdout);
  }

  /** Node may have come to this machine in another way than from a package: then that dependency cannot be checked. */
  async function dpkg(...args: string[]) {
    const foreign = !(await isInstalled('nodejs'));
    if (foreign && !fs.existsSync(path.join(copy, 'usr/bin/node')))
      fs.symlinkSync(process.execPath, path.join(copy, 'usr/bin/node'));
    const force = foreign ? ['--force-depends'] : [];
    const result = await inside('dpkg', '--no-triggers', ...force, ...args);
    expect(result.exitCode, result.stderr).toBe(0);
    return result;
  }

  const listed = (file: string) => fs.existsSync(path.join(copy, file));

  it('says what it needs, and is a package that dpkg takes', async () => {
    const { stdout } = await execa('dpkg-deb', ['--field', deb]);
    expect(stdout).toMatch(/^Depends: nodejs \(>= 20\),.* fuse3,.* qemu-utils/m);
    expect(stdout).toMatch(/^Recommends: libvirt-clients, lvm2$/m);
    const { stdout: owners } = await execa('dpkg-deb', ['--contents', deb]);
    for (const line of owners.split('\n')) expect(line).toMatch(/^[-dl][rwx-]{9} root\/root /);
    expect(owners).not.toMatch(/typescript|vitest|biome|\.ts$|darwin/m);
    expect(fs.statSync(deb).size).toBeLessThan(8 * 1024 * 1024);
  });

  it('is installed with its manual, completion and units, and works', async () => {
    await dpkg('--install', '/package.deb');
    expect(await isInstalled('chunkmount')).toBe(true);
    const { version } = JSON.parse(fs.readFileSync(path.join(ROOT, 'package.json'), 'utf8'));
    expect((await inside('chunkmount', '--version')).stdout).toBe(version);
    const manual = '/usr/share/man/man1/chunkmount.1.gz';
    expect((await inside('man', '--where', 'chunkmount')).stdout).toBe(manual);
    expect((await inside('man', 'chunkmount')).stdout).toMatch(/NAME\n +chunkmount - back up disks/);
    expect(gunzipSync(fs.readFileSync(path.join(copy, manual))).toString()).toContain('.TH CHUNKMOUNT 1');
    for (const [shell, file] of [
      ['bash', 'usr/share/bash-completion/completions/chunkmount'],
      ['zsh', 'usr/share/zsh/vendor-completions/_chunkmount'],
    ])
      expect(`${(await inside('chunkmount', 'completion', shell!)).stdout}\n`).toBe(
        fs.readFileSync(path.join(copy, file!), 'utf8'),
      );
    for (const unit of fs.readdirSync(path.join(ROOT, 'examples/systemd')))
      expect(listed(`usr/lib/systemd/system/${unit}`), unit).toBe(true);
    expect(fs.readFileSync(path.join(copy, 'usr/share/doc/chunkmount/copyright'), 'utf8')).toContain(
      'commander ',
    );
    // Both transports: both compiled packages can be loaded.
    for (const transport of ['kernel', 'native']) {
      const mounted = await inside(
        'chunkmount',
        '--image=/disk.raw',
        '--name=demo',
        `--transport=${transport}`,
      );
      expect(mounted, mounted.stderr).toMatchObject({ exitCode: 0, stdout: TREE });
      expect((await inside('chunkmount', 'verify', TREE)).exitCode).toBe(0);
      expect(await inside('chunkmount', 'cleanup', '--name=demo')).toMatchObject({ exitCode: 0, stderr: '' });
    }
  });

  it('is removed without ending a session, which the package that comes next can end', async () => {
    expect((await inside('chunkmount', '--image=/disk.raw', '--name=demo')).exitCode).toBe(0);
    const removed = await dpkg('--purge', 'chunkmount');
    expect(removed.stderr).toMatch(/warning: demo is still there \(sessions\).*chunkmount cleanup --all/);
    expect(removed.stderr).toMatch(/warning: \/var\/lib\/chunkmount stays/);
    expect(fs.readFileSync(path.join(copy, TREE, 'disk0/000000/00000000'))).toHaveLength(262_144);
    await dpkg('--install', '/package.deb');
    expect(await inside('chunkmount', 'cleanup', '--all')).toMatchObject({ exitCode: 0, stderr: '' });
  });

  it('keeps the indexes when it is removed, and nothing when it is purged', async () => {
    expect(await dpkg('--remove', 'chunkmount')).toMatchObject({ stderr: '' });
    expect(listed(`${STATE}/index/demo/disk0.v1`)).toBe(true);
    await dpkg('--purge', 'chunkmount');
    expect(listed(STATE)).toBe(false);
    const left = fs
      .readdirSync(path.join(layers, 'upper'), { recursive: true, encoding: 'utf8' })
      // man keeps what it has formatted.
      .filter((file) => /chunkmount/.test(file) && !file.startsWith('var/cache/man/'))
      .map((file) => fs.lstatSync(path.join(layers, 'upper', file)));
    // An overlay notes that something is gone by a character device.
    expect(left.filter((stats) => !stats.isCharacterDevice())).toEqual([]);
  });
});

it('npm packs what the program needs, and the manual', async () => {
  const { stdout } = await execa('npm', ['pack', '--dry-run', '--json', '--ignore-scripts'], { cwd: ROOT });
  const [{ files }] = JSON.parse(stdout) as [{ files: { path: string }[] }];
  const paths = files.map((file) => file.path);
  for (const file of ['dist/cli.js', 'completion/functions.bash', 'examples/systemd/chunkmount@.service'])
    expect(paths).toContain(file);
  const { man } = JSON.parse(fs.readFileSync(path.join(ROOT, 'package.json'), 'utf8'));
  // npm links what a list names, and nothing else.
  expect(man).toEqual([expect.stringMatching(/\.1$/)]);
  expect(paths).toContain(man[0]);
});
