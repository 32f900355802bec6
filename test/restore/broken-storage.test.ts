import * as fs from 'node:fs';
import * as path from 'node:path';
import { execa } from 'execa';
import { beforeAll, describe, expect, it } from 'vitest';
import type { VerifyReport } from '../../src/restore/verify.js';
import { CLI, type CliResult } from '../support/chunkmount.js';
import { build, requireAll, root } from '../support/requirements.js';
import { CHUNKS, type DemoTree, demoTree, flipBit } from './demo-tree.js';

const BROKEN_STORAGE = path.join(import.meta.dirname, 'broken-storage.mjs');
/** Of Debian's `nobody`: any user who may read nothing. */
const NOBODY = 65534;

beforeAll(() => requireAll(build));

async function chunkmount(args: readonly string[], broken: string, call = 'read'): Promise<CliResult> {
  const env = { NODE_OPTIONS: `--import ${BROKEN_STORAGE}`, BROKEN: broken, BROKEN_CALL: call };
  const { exitCode, stdout, stderr } = await execa(process.execPath, [CLI, ...args], { env, reject: false });
  return { exitCode, stdout, stderr };
}

async function verify(tree: DemoTree, broken: string): Promise<VerifyReport> {
  const { exitCode, stdout } = await chunkmount(['verify', tree.root, '--json'], broken);
  expect(exitCode).toBe(4);
  return JSON.parse(stdout) as VerifyReport;
}

describe('a tree on a broken disk', () => {
  it.each(['.', 'vda', 'vda/000001'])(
    'whose directory %s cannot be listed is verified to the end',
    async (broken) => {
      const tree = demoTree();
      flipBit(tree.chunk(CHUNKS - 1));
      const { problems, disks } = await verify(tree, path.join(tree.root, broken));
      const name = broken === '.' ? tree.root : broken;
      expect(problems).toContainEqual({
        kind: 'directory',
        path: broken,
        message: `${name} cannot be listed: EIO`,
      });
      expect(problems.map(({ kind }) => kind).sort()).toEqual(['directory', 'hash']);
      expect(disks).toMatchObject([{ verified: CHUNKS - 1 }]);
    },
  );

  it('whose sums cannot be read is verified to the end, and restored with --keep-going only', async () => {
    const tree = demoTree();
    fs.rmSync(tree.chunk(5));
    const { problems } = await verify(tree, 'vda.xxh64');
    const sums = path.join(tree.root, 'vda.xxh64');
    expect(problems).toMatchObject([
      { kind: 'sums', message: `${sums} cannot be read: EIO` },
      { kind: 'missing' },
    ]);
    const restore = ['restore', tree.root, `--to=${tree.beside('new.img')}`];
    expect((await chunkmount(restore, 'vda.xxh64')).stderr).toContain(
      `${sums} cannot be read: EIO\n  look at`,
    );
    expect((await chunkmount([...restore, '--keep-going'], 'vda.xxh64')).exitCode).toBe(4);
    expect(fs.readFileSync(tree.beside('new.img')).subarray(-1000)).toEqual(tree.content.subarray(-1000));
  });

  it('whose manifest cannot be read is named', async () => {
    const tree = demoTree();
    const { exitCode, stderr } = await chunkmount(['verify', tree.root], 'manifest.json');
    expect(exitCode).toBe(1);
    expect(stderr).toContain(
      `error: ${path.join(tree.root, 'manifest.json')} cannot be read: EIO\n  look at`,
    );
  });
});

it.each([
  ['synced', 'fsync', 'new.img cannot be written: EIO: i/o error, fsync\n  look at the storage'],
  ['as large as the disk', 'ftruncate', ' bytes: EIO: i/o error, ftruncate\n  give a place on a file system'],
])('an image that cannot be %s is named', async (_, call, message) => {
  const tree = demoTree();
  const to = tree.beside('new.img');
  const { exitCode, stderr } = await chunkmount(
    ['restore', tree.root, `--to=${to}`],
    '.chunkmount-part',
    call,
  );
  expect(exitCode).toBe(1);
  expect(stderr).toContain(`error: ${fs.realpathSync(tree.directory)}/new.img cannot be`);
  expect(stderr).toContain(message);
  // What was restored is kept.
  expect(fs.existsSync(tree.beside('.new.img.chunkmount-part'))).toBe(call === 'fsync');
});

it('a file that is changed in place and cannot be synced is named', async () => {
  const tree = demoTree();
  const to = tree.beside('disk.img');
  fs.writeFileSync(to, tree.content);
  const delta = ['restore', tree.root, `--to=${to}`, '--delta'];
  const { exitCode, stderr } = await chunkmount(delta, 'disk.img', 'fsync');
  expect([exitCode, stderr]).toEqual([1, expect.stringContaining('EIO: i/o error, fsync')]);
});

it('a disk that the user may not read is named by verify and restore', async () => {
  await requireAll(root);
  const tree = demoTree();
  fs.chmodSync(tree.directory, 0o755);
  fs.chmodSync(path.join(tree.root, 'vda'), 0o700);
  const run = async (...args: string[]) =>
    execa(process.execPath, [CLI, ...args], { uid: NOBODY, gid: NOBODY, reject: false });
  const verified = await run('verify', tree.root);
  expect(verified.exitCode).toBe(4);
  expect(verified.stdout).toContain('vda cannot be opened: EACCES');
  const restored = await run('restore', tree.root, '--to=-');
  expect(restored.exitCode).toBe(1);
  expect(restored.stderr).toContain(
    `error: ${path.join(tree.root, 'vda')} cannot be read: EACCES\n  trees are readable for root only`,
  );
});
