import * as fs from 'node:fs';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { run } from '../../src/host/exec.js';
import { listMounts, mountAt, mountpointsOf } from '../../src/host/mountinfo.js';
import { TestChunkmount } from '../support/chunkmount.js';
import { programFirst } from '../support/dumps.js';
import { noise } from '../support/images.js';
import { build, fuseDevice, requireAll, root } from '../support/requirements.js';
import { expectError, traces } from './expectations.js';

/** mount(8) follows a symbolic link, and whoever looks for the mount at the link's path finds none. */
describe('a symbolic link where a tree would be mounted', () => {
  const chunkmount = new TestChunkmount();
  const image = chunkmount.path('disk.raw');
  const tree = chunkmount.tree('demo');
  const given = [`--image=${image}`, '--name=demo'];
  const target = chunkmount.path('target');

  beforeAll(async () => {
    await requireAll(root, build, fuseDevice);
    fs.writeFileSync(image, noise(1024 * 1024, 1));
  });

  beforeEach(() => {
    fs.mkdirSync(target);
    fs.mkdirSync(chunkmount.backupDirectory, { recursive: true });
  });

  afterEach(async () => {
    const mounted = below(target);
    for (const mountpoint of mounted) await run('umount', ['-l', mountpoint]);
    if (fs.existsSync(chunkmount.stateDirectory)) await chunkmount.run(['cleanup', '--all']);
    for (const left of [tree, target]) fs.rmSync(left, { recursive: true, force: true });
    expect([...mounted, ...traces(chunkmount)]).toEqual([]);
  });

  afterAll(() => chunkmount.close());

  function below(directory: string): string[] {
    return listMounts().flatMap(({ mountpoint }) => (mountpoint.startsWith(directory) ? [mountpoint] : []));
  }

  /** A PATH on which the mountpoint becomes a link in the last moment. */
  function replacing(mountpoint: string): { PATH: string } {
    const script = `rmdir '${mountpoint}'; ln -s '${target}' '${mountpoint}'; PATH=\${PATH#*:} exec mount "$@"`;
    return { PATH: programFirst(chunkmount.path('bin'), 'mount', script) };
  }

  it('is refused', async () => {
    fs.symlinkSync(target, tree);
    expect(expectError(await chunkmount.run(given), 1)).toEqual({
      message: `${tree} is a symbolic link`,
      hint: 'move it away, or give another --backupdir, which may be a link itself',
    });
    expect(below(target)).toEqual([]);
    expect(fs.readlinkSync(tree)).toBe(target);
  });

  it('is refused, too, when it leads nowhere', async () => {
    fs.symlinkSync(chunkmount.path('nowhere'), tree);
    expect(expectError(await chunkmount.run(given), 1).message).toBe(`${tree} is a symbolic link`);
  });

  it('put there in the last moment leaves no mount behind', async () => {
    const told = expectError(await chunkmount.run(given, replacing(tree)), 1);
    expect(told.message).toBe(
      `${tree} is not mounted although mount said so: a symbolic link led it to ${target}`,
    );
    expect(below(target)).toEqual([]);
    expect(JSON.parse(await chunkmount.succeed('list', '--json')).sessions).toEqual([]);
  });

  it('may be the directory for all trees', async () => {
    const link = chunkmount.path('link');
    fs.symlinkSync(target, link);
    const { exitCode, stdout } = await chunkmount.run([...given, `--backupdir=${link}`]);
    expect({ exitCode, stdout }).toEqual({ exitCode: 0, stdout: `${target}/demo\n` });
    await chunkmount.succeed('cleanup', '--name=demo');
    expect(fs.readdirSync(target)).toEqual([]);
    fs.rmSync(link);
  });

  it('a bind mount of a tree stays, and answers no more: an empty directory there would empty its copies', async () => {
    await chunkmount.succeed(...given);
    const { source } = mountAt(tree)!;
    await run('mount', ['--bind', tree, target]);
    await run('umount', [tree]);
    await chunkmount.run(['cleanup', '--name=demo']);
    expect(mountpointsOf(source)).toEqual([target]);
    expect(() => fs.statfsSync(target)).toThrow(/ENOTCONN/);
    await run('umount', [target]);
  });

  it('put in place of the mountpoint of image-mount leaves no mount behind', async () => {
    await chunkmount.succeed(...given);
    const mountpoint = chunkmount.path('images');
    fs.mkdirSync(mountpoint);
    const log = `--log=${chunkmount.path('log')}`;
    const args = ['image-mount', tree, mountpoint, log];
    const told = expectError(await chunkmount.run(args, replacing(mountpoint)), 1);
    expect(told.message).toBe(
      `${mountpoint} is not mounted although mount said so: a symbolic link led it to ${target}`,
    );
    expect(below(target)).toEqual([]);
    fs.rmSync(mountpoint);
    await chunkmount.succeed('cleanup', '--name=demo');
  });
});
