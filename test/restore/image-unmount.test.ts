import * as fs from 'node:fs';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { run } from '../../src/host/exec.js';
import { mountAt } from '../../src/host/mountinfo.js';
import { signalProcess, waitForEnd } from '../../src/host/process-identity.js';
import { takeAway } from '../../src/restore/image-unmount.js';
import { TestChunkmount } from '../support/chunkmount.js';
import { programFirst } from '../support/dumps.js';
import { eventually } from '../support/libvirt.js';
import { build, fuseDevice, requireAll, root } from '../support/requirements.js';
import { demoTree, editManifest } from './demo-tree.js';
import { daemonOf, expectError, mountImages, readAt } from './image-session.js';

const chunkmount = new TestChunkmount();

beforeAll(() => requireAll(root, build, fuseDevice));

afterAll(() => chunkmount.close());

describe('image-unmount', () => {
  it('refuses while a program reads, and names it', async () => {
    const { root: tree } = demoTree();
    const { image, mountpoint } = await mountImages(chunkmount, tree);
    const fd = fs.openSync(image('vda'), 'r');
    try {
      const { message } = expectError(await chunkmount.run(['image-unmount', mountpoint]), 1);
      expect(message).toMatch(new RegExp(`is in use by .*\\(process ${process.pid}\\)$`));
      expect(daemonOf(mountpoint)).toHaveLength(1);
    } finally {
      fs.closeSync(fd);
    }
    await chunkmount.succeed('image-unmount', mountpoint);
  });

  it('works after the daemon was killed; readers get an error, not an empty disk', async () => {
    const { root: tree } = demoTree();
    const { image, mountpoint } = await mountImages(chunkmount, tree);
    const [daemon] = daemonOf(mountpoint);
    signalProcess(daemon!, 'SIGKILL');
    await waitForEnd(daemon!, 60_000);
    expect(() => fs.statfsSync(mountpoint)).toThrow(/ENOTCONN/);
    await expect(readAt(image('vda'), 0, 10)).rejects.toThrow(/not connected/);
    const again = expectError(await chunkmount.run(['image-mount', tree, mountpoint]), 2);
    expect(again.hint).toContain(`chunkmount image-unmount ${mountpoint}`);
    await chunkmount.succeed('image-unmount', mountpoint);
    await chunkmount.succeed('image-mount', tree, mountpoint);
  });

  it('is told a path that leads there, and ends the daemon', async () => {
    const { root: tree, beside } = demoTree();
    const { mountpoint } = await mountImages(chunkmount, tree);
    fs.symlinkSync(mountpoint, beside('link'));
    await chunkmount.succeed('image-unmount', beside('link'));
    expect(daemonOf(mountpoint)).toEqual([]);
  });

  it('leaves what is not an image-mount alone', async () => {
    const { beside } = demoTree();
    const other = beside('other');
    fs.mkdirSync(other);
    expectError(await chunkmount.run(['image-unmount', other]), 2);
    expectError(await chunkmount.run(['image-unmount', beside('nothing')]), 2);
    await run('mount', ['-t', 'tmpfs', 'tmpfs', other]);
    try {
      expectError(await chunkmount.run(['image-unmount', other]), 2);
      expect(mountAt(other)?.type).toBe('tmpfs');
    } finally {
      await run('umount', [other]);
    }
  });
});

describe('what is in the way of an image-unmount', () => {
  it('a mount on one of the images is named', async () => {
    const { root: tree, beside } = demoTree();
    const { image, mountpoint } = await mountImages(chunkmount, tree);
    fs.writeFileSync(beside('file'), '');
    await run('mount', ['--bind', beside('file'), image('vda')]);
    try {
      const { message } = expectError(await chunkmount.run(['image-unmount', mountpoint]), 1);
      expect(message).toBe(`${mountpoint} is in use by the mount ${image('vda')}`);
    } finally {
      await run('umount', [image('vda')]);
    }
  });

  it('a mount of somebody else in the place of the images stays', async () => {
    const { beside } = demoTree();
    fs.mkdirSync(beside('other'));
    await run('mount', ['-t', 'tmpfs', 'tmpfs', beside('other')]);
    try {
      await takeAway(beside('other'));
      expect(mountAt(beside('other'))?.type).toBe('tmpfs');
    } finally {
      await run('umount', [beside('other')]);
    }
  });
});

describe('bad input', () => {
  it.each<[string, number, RegExp, (beside: (name: string) => string) => string[]]>([
    ['no such tree', 2, /there is no tree at/, (beside) => [beside('none'), beside('mnt')]],
    [
      'a directory that is no tree',
      4,
      /manifest\.json is missing/,
      (beside) => [beside('mnt'), beside('mnt')],
    ],
    ['no such mountpoint', 2, /there is no such directory/, (beside) => [beside('mail01'), beside('none')]],
    ['a file as mountpoint', 2, /ENOTDIR/, (beside) => [beside('mail01'), beside('mail01/manifest.json')]],
    ['a mountpoint that is not empty', 2, /is not empty/, (beside) => [beside('mail01'), beside('mail01')]],
    [
      'an unknown transport',
      2,
      /--transport=smoke is not possible/,
      (beside) => [beside('mail01'), beside('mnt'), '--transport=smoke'],
    ],
    [
      'an unknown owner',
      2,
      /there is no user called "nobody-at-all"/,
      (beside) => [beside('mail01'), beside('mnt'), '--owner=nobody-at-all'],
    ],
    [
      'a log that cannot be written',
      2,
      /the log .* cannot be written: ENOENT/,
      (beside) => [beside('mail01'), beside('mnt'), `--log=${beside('none/log')}`],
    ],
  ])('%s', async (_, exitCode, message, args) => {
    const { beside } = demoTree();
    fs.mkdirSync(beside('mnt'));
    const error = expectError(await chunkmount.run(['image-mount', ...args(beside)]), exitCode);
    expect(error.message).toMatch(message);
    expect(mountAt(beside('mnt'))).toBeUndefined();
    expect(daemonOf(beside('mnt'))).toEqual([]);
  });

  it('a mountpoint that is one already', async () => {
    const { root: tree } = demoTree();
    const { mountpoint } = await mountImages(chunkmount, tree);
    const { message, hint } = expectError(await chunkmount.run(['image-mount', tree, mountpoint]), 2);
    expect(message).toContain('is a mountpoint already');
    expect(hint).toContain(`chunkmount image-unmount ${mountpoint}`);
  });

  it.each(['image-mount', 'image-unmount'])('%s without arguments', async (command) => {
    const { exitCode, stderr, stdout } = await chunkmount.run([command]);
    expect({ exitCode, stdout }).toEqual({ exitCode: 2, stdout: '' });
    expect(stderr).toContain(`missing required argument`);
  });

  it('a manifest of a newer version, or that wants a file elsewhere', async () => {
    const { root: tree, beside } = demoTree();
    fs.mkdirSync(beside('mnt'));
    editManifest(tree, (manifest) => (manifest.version = 3));
    expectError(await chunkmount.run(['image-mount', tree, beside('mnt')]), 4);
    editManifest(tree, (manifest) => {
      manifest.version = 1;
      (manifest.disks as { target: string }[])[0]!.target = '../../etc/shadow';
    });
    expectError(await chunkmount.run(['image-mount', tree, beside('mnt')]), 4);
  });

  it('a signal while it mounts: nothing is left', async () => {
    const { root: tree, beside } = demoTree();
    fs.mkdirSync(beside('mnt'));
    const PATH = programFirst(beside('bin'), 'mount', `: >'${beside('mounts')}'; exec sleep 60`);
    const command = chunkmount.start(['image-mount', tree, beside('mnt')], { PATH });
    await eventually(async () => fs.existsSync(beside('mounts')));
    expect(daemonOf(beside('mnt'))).toHaveLength(1);
    command.kill('SIGINT');
    expect((await command).exitCode).toBe(130);
    expect(mountAt(beside('mnt'))).toBeUndefined();
    expect(daemonOf(beside('mnt'))).toEqual([]);
  });
});
