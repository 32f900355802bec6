import * as fs from 'node:fs';
import { beforeAll, describe, expect, it } from 'vitest';
import { type ChunkDamage, describeRun, joinDamages } from '../../src/restore/damage.js';
import type { RestoreResult } from '../../src/restore/restore-disk.js';
import type { VerifyReport } from '../../src/restore/verify.js';
import { build, requireAll } from '../support/requirements.js';
import { chunkFile } from '../support/trees.js';
import { built, errorOf, RecordingContext } from './built.js';
import { CHUNK_DAMAGES, MANIFEST_DAMAGES, TREE_DAMAGES } from './damages.js';
import { CHUNK, CHUNKS, type DemoTree, demoTree, flipBit, swap } from './demo-tree.js';

type RestoreModule = typeof import('../../src/commands/restore.js');
type VerifyModule = typeof import('../../src/commands/verify.js');
let runRestore: RestoreModule['runRestore'];
let runVerify: VerifyModule['runVerify'];

beforeAll(async () => {
  await requireAll(build);
  ({ runRestore } = await built<RestoreModule>('commands/restore'));
  ({ runVerify } = await built<VerifyModule>('commands/verify'));
});

const DEFAULTS = { force: false, delta: false, keepGoing: false };

/** What verify reports about a tree, and whether it took it for intact. */
async function verifyReport(root: string, sample?: number): Promise<VerifyReport> {
  const context = new RecordingContext(true);
  const failure = await runVerify({ tree: root, sample }, context).then(
    () => undefined,
    (error: unknown) => error,
  );
  const report = JSON.parse(context.text) as VerifyReport;
  expect(failure).toEqual(report.intact ? undefined : expect.objectContaining({ kind: 'integrity' }));
  return report;
}

/** Restores, and looks whether that gives the disk or the error that it should. */
async function expectRestore(tree: DemoTree, expected: RegExp | undefined): Promise<void> {
  const to = tree.beside('new.img');
  const restoring = runRestore({ ...DEFAULTS, tree: tree.root, to }, new RecordingContext());
  if (expected === undefined) {
    await restoring;
    expect(fs.readFileSync(to).equals(tree.content)).toBe(true);
    return;
  }
  const error = await errorOf(restoring, 'integrity');
  expect(error.message).toMatch(expected);
  expect(error.message.startsWith(tree.root)).toBe(true);
  expect(error.hint).toBeDefined();
  expect(fs.existsSync(to)).toBe(false);
}

/** A share so small that hardly any chunk is read. */
const HARDLY_ANY = 1e-9;

describe('a damaged tree', () => {
  it.each([...CHUNK_DAMAGES, ...TREE_DAMAGES, ...MANIFEST_DAMAGES])(
    'with $name is named by restore and verify',
    async ({ damage, restore, verify }) => {
      const tree = demoTree();
      damage(tree);
      await expectRestore(tree, restore);
      const report = await verifyReport(tree.root);
      expect(report.problems.map(({ kind, path }) => [kind, path])).toEqual(verify);
      expect(report).toMatchObject({ intact: false, problemCount: verify.length });
      // Only what is in the content of chunks needs them to be read.
      const hidden = verify.every(([kind]) => kind === 'hash');
      expect((await verifyReport(tree.root, HARDLY_ANY)).intact).toBe(hidden);
    },
  );

  it('was intact before', async () => {
    const tree = demoTree();
    await expectRestore(tree, undefined);
    expect(await verifyReport(tree.root)).toMatchObject({
      intact: true,
      problems: [],
      disks: [{ verified: CHUNKS }],
    });
  });
});

describe('restore --keep-going', () => {
  it('puts zeros where chunks are damaged, lists them, and ends with an integrity error', async () => {
    const tree = demoTree();
    flipBit(tree.chunk(7));
    for (const index of [20, 21, 22]) fs.rmSync(tree.chunk(index));
    fs.truncateSync(tree.chunk(600), 5);
    const context = new RecordingContext(true);
    const options = { ...DEFAULTS, tree: tree.root, to: tree.beside('new.img'), keepGoing: true };
    const error = await errorOf(runRestore(options, context), 'integrity');
    expect(error.message).toBe(`5 chunks of ${tree.root} could not be restored as backed up`);
    for (const index of [7, 20, 21, 22, 600]) tree.content.fill(0, index * CHUNK, (index + 1) * CHUNK);
    expect(fs.readFileSync(tree.beside('new.img')).equals(tree.content)).toBe(true);
    const [result] = (JSON.parse(context.text) as { disks: RestoreResult[] }).disks;
    expect(result).toMatchObject({ damageCount: 5 });
    expect(result!.damage.map(({ chunk, kind }) => [chunk, kind])).toEqual([
      [7, 'hash'],
      [20, 'missing'],
      [21, 'missing'],
      [22, 'missing'],
      [600, 'size'],
    ]);
    expect(context.messages.filter((message) => message.startsWith('warn'))).toEqual([
      expect.stringMatching(/^warn: vda\/000000\/00000007 is corrupt/),
      'warn: vda/000000/00000014 to vda/000000/00000016: 3 chunks are missing',
      'warn: vda/000002/00000258 has 5 bytes instead of 4096',
    ]);
  });

  it('restores what cannot be checked', async () => {
    const tree = demoTree();
    fs.rmSync(`${tree.root}/vda.xxh64`);
    const context = new RecordingContext();
    const options = { ...DEFAULTS, tree: tree.root, to: tree.beside('new.img'), keepGoing: true };
    await errorOf(runRestore(options, context), 'integrity');
    expect(fs.readFileSync(tree.beside('new.img')).equals(tree.content)).toBe(true);
    expect(context.messages).toContain(
      `warn: ${chunkFile('vda', 0)} to ${chunkFile('vda', CHUNKS - 1)}: 700 chunks cannot be checked: their lines in the sums file are lost`,
    );
  });

  it('writes zeros over what a block device or file had there before', async () => {
    const tree = demoTree();
    fs.rmSync(tree.chunk(7));
    const to = tree.beside('old.img');
    fs.writeFileSync(to, Buffer.alloc(tree.content.byteLength, 0xff));
    await errorOf(
      runRestore({ ...DEFAULTS, tree: tree.root, to, delta: true, keepGoing: true }, new RecordingContext()),
      'integrity',
    );
    tree.content.fill(0, 7 * CHUNK, 8 * CHUNK);
    expect(fs.readFileSync(to).equals(tree.content)).toBe(true);
  });
});

describe('a restore that a damaged chunk stopped', () => {
  it('goes on once the chunk is repaired', async () => {
    const tree = demoTree();
    swap(tree.chunk(650), tree.chunk(651));
    const options = { ...DEFAULTS, tree: tree.root, to: tree.beside('new.img') };
    const context = new RecordingContext();
    await errorOf(runRestore(options, context), 'integrity');
    expect(context.messages.at(-1)).toContain('the same command goes on from there');
    swap(tree.chunk(650), tree.chunk(651));
    await runRestore(options, new RecordingContext());
    expect(fs.readFileSync(tree.beside('new.img')).equals(tree.content)).toBe(true);
  });
});

describe('joinDamages', () => {
  const damage = (kind: ChunkDamage['kind'], chunk: number, disk = 'vda', found = 'nothing'): ChunkDamage => {
    return { kind, disk, chunk, path: chunkFile(disk, chunk), expected: '0', found };
  };

  it('joins neighbours that are damaged alike, and no others', () => {
    const damages = [
      ...[damage('missing', 1), damage('missing', 2), damage('missing', 4), damage('size', 5)],
      ...[damage('hash', 7), damage('hash', 8), damage('missing', 9, 'vdb'), damage('missing', 10, 'vdc')],
      ...[damage('unreadable', 20, 'vda', 'EIO'), damage('unreadable', 21, 'vda', 'EACCES')],
    ];
    expect(joinDamages(damages).map(({ count }) => count)).toEqual([2, 1, 1, 1, 1, 1, 1, 1, 1]);
    expect(describeRun(joinDamages(damages)[0]!)).toBe(
      'vda/000000/00000001 to vda/000000/00000002: 2 chunks are missing',
    );
    expect(joinDamages([])).toEqual([]);
  });
});
