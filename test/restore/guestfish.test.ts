import * as fs from 'node:fs';
import * as path from 'node:path';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { run } from '../../src/host/exec.js';
import { TestChunkmount } from '../support/chunkmount.js';
import { build, fuseDevice, program, requireAll, root } from '../support/requirements.js';
import { testBytes, writeTree } from '../support/trees.js';
import { demoTree, MIB } from './demo-tree.js';
import { mountImages } from './image-session.js';

const VM_KERNEL = path.resolve(import.meta.dirname, '../../scripts/lib/vm-kernel');
/** It boots a machine of its own, without KVM. */
const SLOW_MS = 300_000;

/**
 * supermin, which makes guestfish's machine, takes the kernel that it is told, but looks for the host's modules all the same. A
 * host without any gets an empty directory for them, seen by guestfish only.
 */
const WITH_MODULES = `mount -t tmpfs tmpfs "$1" && mkdir "$1/work" "$1/upper" "$1/upper/modules" &&
mount -t overlay -o "lowerdir=/usr/lib,upperdir=$1/upper,workdir=$1/work" overlay /usr/lib && shift && exec guestfish "$@"`;

const chunkmount = new TestChunkmount();

beforeAll(() =>
  requireAll(
    root,
    build,
    fuseDevice,
    program('guestfish'),
    program('mke2fs', 'e2fsprogs'),
    program('unshare'),
  ),
);

afterAll(() => chunkmount.close());

/** Runs guestfish as a user would, but for what hosts without KVM or a kernel lack. */
async function guestfish(directory: string, ...args: string[]): Promise<string> {
  const kernel = (await run(VM_KERNEL, [], { timeoutMs: SLOW_MS })).stdout.trim();
  const [version] = fs.readdirSync(path.join(kernel, 'lib/modules'));
  const environment = {
    SUPERMIN_KERNEL: path.join(kernel, 'vmlinuz'),
    SUPERMIN_KERNEL_VERSION: version!,
    SUPERMIN_MODULES: path.join(kernel, 'lib/modules', version!),
    LIBGUESTFS_BACKEND: 'direct',
    LIBGUESTFS_BACKEND_SETTINGS: 'force_tcg',
    LIBGUESTFS_CACHEDIR: directory,
    LIBGUESTFS_MEMSIZE: '768',
  };
  const assignments = Object.entries(environment).map(([name, value]) => `${name}=${value}`);
  const modules = path.join(directory, 'modules');
  fs.mkdirSync(modules);
  const command = ['unshare', '--mount', 'sh', '-c', WITH_MODULES, 'sh', modules, ...args];
  return (await run('env', [...assignments, ...command], { timeoutMs: SLOW_MS })).stdout;
}

it('guestfish reads files from the image of a tree', { timeout: SLOW_MS }, async () => {
  const { beside } = demoTree();
  const letter = testBytes(3 * MIB, 7);
  fs.mkdirSync(beside('files'));
  fs.writeFileSync(path.join(beside('files'), 'letter'), letter);
  await run('mke2fs', ['-q', '-t', 'ext4', '-d', beside('files'), beside('disk'), '12M']);
  writeTree(beside('tree'), { disks: [{ target: 'vda', content: fs.readFileSync(beside('disk')) }] });
  const { image, mountpoint } = await mountImages(chunkmount, beside('tree'));
  const directory = fs.mkdtempSync(chunkmount.path('guestfish-'));
  const commands = ['ls', '/', ':', 'download', '/letter', beside('letter')];
  const names = await guestfish(directory, '--ro', '-a', image('vda'), '-m', '/dev/sda', ...commands);
  expect(names.split('\n')).toContain('letter');
  expect(fs.readFileSync(beside('letter')).equals(letter)).toBe(true);
  await chunkmount.succeed('image-unmount', mountpoint);
});
