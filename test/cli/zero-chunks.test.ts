import * as fs from 'node:fs';
import * as path from 'node:path';
import { execa } from 'execa';
import { afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { findProcesses } from '../../src/host/process-list.js';
import { noise } from '../support/images.js';
import { fuseDevice, program, requireAll, root } from '../support/requirements.js';
import { expectError } from './expectations.js';
import { CHUNK, filesBelow, TreeSessions } from './tree-sessions.js';
import { chunksOf, differing, directoriesOf, type EntryStat, statTree } from './tree-stats.js';

const SKIP = ['--zero-chunks=skip'];
/** Three chunk directories: one with data, one all zeros, one with data at its end. */
const CHUNKS = 600;
const SIZE = CHUNKS * CHUNK - 1024;

let sessions: TreeSessions;

beforeAll(() =>
  requireAll(
    root,
    fuseDevice,
    program('rsync'),
    program('xxhsum', 'xxhash'),
    program('qemu-img', 'qemu-utils'),
  ),
);
beforeEach(() => {
  sessions = new TreeSessions(SKIP);
  fs.writeFileSync(sessions.image, '');
  fs.truncateSync(sessions.image, SIZE);
  for (const chunk of [0, 1, 2, 100, 599]) fill(chunk);
  // Zeros that have to be read to be known.
  zero(50);
});
afterEach(() => sessions.close());

const length = (chunk: number) => Math.min(CHUNK, SIZE - chunk * CHUNK);
const fill = (chunk: number, seed = 1) => sessions.write(chunk, noise(length(chunk), seed + chunk));
const zero = (chunk: number) => sessions.write(chunk, Buffer.alloc(length(chunk)));

function file(chunk: number): string {
  return `disk0/${(chunk >> 8).toString(16).padStart(6, '0')}/${chunk.toString(16).padStart(8, '0')}`;
}

function promised(entries: ReadonlyMap<string, EntryStat>): Map<string, EntryStat> {
  return new Map([...chunksOf(entries), ...directoriesOf(entries)]);
}

const inCopy = () => [...filesBelow(sessions.copy).keys()].filter((name) => name.includes('/'));

/** verify, restore, image-mount and xxhsum must all find the image in the copy. */
async function expectWhole(): Promise<void> {
  const { chunkmount, copy, image } = sessions;
  expect(await chunkmount.succeed('verify', copy)).toMatch(/600 of 600 chunks read and right\nintact\n$/);
  await execa('xxhsum', ['--status', '-c', 'disk0.xxh64'], { cwd: copy });
  const to = chunkmount.path('restored.raw');
  await chunkmount.succeed('restore', copy, `--to=${to}`, '--force');
  expect(fs.readFileSync(to).equals(fs.readFileSync(image))).toBe(true);
  const mountpoint = fs.mkdtempSync(chunkmount.path('images-'));
  await chunkmount.succeed('image-mount', copy, mountpoint);
  try {
    expect(fs.readFileSync(path.join(mountpoint, 'disk0.img')).equals(fs.readFileSync(image))).toBe(true);
  } finally {
    await chunkmount.succeed('image-unmount', mountpoint);
  }
}

describe('--zero-chunks=skip', () => {
  it('sends the others, and what becomes zeros vanishes from the copy', async () => {
    expect(await sessions.backup()).toEqual([0, 1, 2, 100, 599].map(file));
    await expectWhole();
    expect(await sessions.backup()).toEqual([]);
    zero(1);
    fill(2, 2);
    fill(300);
    zero(599);
    expect(await sessions.backup()).toEqual([2, 300].map(file));
    expect(inCopy()).toEqual([0, 2, 100, 300].map(file));
    await expectWhole();
    const streamed = await execa(
      'sh',
      ['-c', `node "$0" restore "$1" --to=- | cmp - "$2"`, cli(), sessions.copy, sessions.image],
      { reject: false },
    );
    expect(streamed).toMatchObject({ exitCode: 0 });
  });

  it('keeps the times of a directory as long as the same chunks are in it', async () => {
    const first = promised(await sessions.look());
    const directories = ['disk0/000000', 'disk0/000001', 'disk0/000002'];
    expect([...first.keys()]).toEqual(expect.arrayContaining(['', 'disk0', ...directories]));
    expect(differing(first, promised(await sessions.look()))).toEqual([]);
    fill(2, 2);
    const second = promised(await sessions.look());
    expect(differing(first, second)).toEqual([file(2)]);
    zero(100);
    fill(400);
    const third = promised(await sessions.look());
    expect(differing(second, third)).toEqual(['disk0/000000', file(100), 'disk0/000001', file(400)]);
    for (const name of directories.slice(0, 2))
      expect(third.get(name)!.mtime).toBeGreaterThan(second.get(name)!.mtime);
    // Nobody looks at that session; the next one must not seem to be the third.
    zero(400);
    await sessions.begin(['run', '--', 'sleep', '1']);
    const fifth = promised(await sessions.look());
    expect(differing(third, fifth)).toEqual(['disk0/000001', file(400)]);
    expect(differing(fifth, promised(await sessions.look()))).toEqual([]);
  });

  it('gives directories new times when it begins, when it ends, and after a session that was cut off', async () => {
    const { chunkmount } = sessions;
    const times = (entries: ReadonlyMap<string, EntryStat>) =>
      ['disk0/000000', 'disk0/000001'].map((name) => entries.get(name)!.mtime);
    const kept = await sessions.look([]);
    expect(chunksOf(kept).size).toBe(CHUNKS);
    const skipped = await sessions.look();
    // The chunks that are there are as they were.
    expect(
      differing(new Map([...chunksOf(kept)].filter(([name]) => skipped.has(name))), chunksOf(skipped)),
    ).toEqual([]);
    await sessions.begin(['mount']);
    const [daemon] = findProcesses((argv) =>
      argv.includes(path.join(chunkmount.stateDirectory, 'sessions/demo')),
    );
    process.kill(daemon!.pid, 'SIGKILL');
    expect((await chunkmount.run(['cleanup', '--name=demo'])).exitCode).toBe(1);
    const again = await sessions.look();
    const keptAgain = await sessions.look([]);
    const all = [kept, skipped, again, keptAgain].map(times);
    for (const directory of [0, 1]) {
      const mtimes = all.map((one) => one[directory]!);
      expect(mtimes).toEqual([...new Set(mtimes)].sort());
    }
    expect(differing(promised(keptAgain), promised(await sessions.look([])))).toEqual([]);
  });

  it('gives directories new times until a session that shows all chunks again has ended', async () => {
    const { chunkmount } = sessions;
    const mtime = (entries: ReadonlyMap<string, EntryStat>) => entries.get('disk0/000000')!.mtime;
    const skipped = await sessions.look();
    await sessions.begin(['mount'], []);
    const shown = await statTree(sessions.tree);
    const [daemon] = findProcesses((argv) =>
      argv.includes(path.join(chunkmount.stateDirectory, 'sessions/demo')),
    );
    process.kill(daemon!.pid, 'SIGKILL');
    expect((await chunkmount.run(['cleanup', '--name=demo'])).exitCode).toBe(1);
    const again = await sessions.look([]);
    expect(mtime(shown)).toBeGreaterThan(mtime(skipped));
    expect(mtime(again)).toBeGreaterThan(mtime(shown));
    expect(differing(promised(again), promised(await sessions.look([])))).toEqual([]);
  });

  it('gives directories new times when nothing is known of the last session', async () => {
    const record = sessions.chunkmount.path('state/index/demo/tree.v1.json');
    const mtime = (entries: ReadonlyMap<string, EntryStat>) => entries.get('disk0/000000')!.mtime;
    const mtimes = [mtime(await sessions.look())];
    for (const options of [[], SKIP]) {
      fs.writeFileSync(record, '{');
      mtimes.push(mtime(await sessions.look(options)));
    }
    expect(mtimes).toEqual([...new Set(mtimes)].sort());
  });

  it('shows the same with both transports', async () => {
    const shown = async (transport: string) => {
      const entries = promised(await sessions.look([...SKIP, `--transport=${transport}`]));
      return new Map([...entries].map(([name, entry]) => [name, { ...entry, inode: 0 }]));
    };
    const kernel = await shown('kernel');
    expect([...chunksOf(kernel).keys()].sort()).toEqual([0, 1, 2, 100, 599].map(file));
    expect(differing(kernel, await shown('native'))).toEqual([]);
  });

  it('is compared with a tree that has them all', async () => {
    const { chunkmount, tree, copy } = sessions;
    const all = chunkmount.path('all');
    await sessions.begin(['run', '--', 'cp', '-a', tree, all], []);
    zero(100);
    await sessions.backup();
    const { disks } = JSON.parse(await chunkmount.succeed('diff', all, copy, '--json'));
    expect(disks[0].ranges).toMatchObject([{ first: 100, count: 1 }]);
    fill(100);
    await sessions.backup();
    await chunkmount.succeed('verify', copy, `--against=${all}`);
  });

  it('does not go with the layout of chunkfs, which cannot do without', async () => {
    const args = [`--image=${sessions.image}`, '--name=demo', '--layout=chunkfs', ...SKIP];
    expectError(await sessions.chunkmount.run(args), 2);
  });
});

describe('a damaged copy without chunks of zeros', () => {
  const verify = async () => {
    const { exitCode, stdout } = await sessions.chunkmount.run(['verify', sessions.copy]);
    return { exitCode, problems: stdout.trimEnd().split('\n').slice(2, -1) };
  };
  const restore = (...options: string[]) =>
    sessions.chunkmount.run([
      'restore',
      sessions.copy,
      `--to=${sessions.chunkmount.path('r')}`,
      '--force',
      ...options,
    ]);
  const sums = () => path.join(sessions.copy, 'disk0.xxh64');
  const editSums = (edit: (lines: string[]) => void) => {
    const lines = fs.readFileSync(sums(), 'latin1').split('\n');
    edit(lines);
    fs.chmodSync(sums(), 0o600);
    fs.writeFileSync(sums(), lines.join('\n'));
  };
  const inDirectory = (chunk: number) => path.join(sessions.copy, file(chunk));

  beforeEach(() => sessions.backup());

  it('misses a chunk that is not zeros', async () => {
    fs.rmSync(inDirectory(100));
    expect(await verify()).toEqual({
      exitCode: 4,
      problems: [
        expect.stringMatching(/^disk0\/000000\/00000064 is missing \(expected hash [0-9a-f]{16}\)$/),
      ],
    });
    expect((await restore()).exitCode).toBe(4);
    expect((await restore('--keep-going')).exitCode).toBe(4);
  });

  it('does not take the zeros from a file that should not be there', async () => {
    fs.chmodSync(path.dirname(inDirectory(3)), 0o700);
    fs.writeFileSync(inDirectory(3), noise(CHUNK, 5));
    expect(await verify()).toEqual({ exitCode: 4, problems: [`${file(3)} does not belong to the tree`] });
    expect((await restore()).exitCode).toBe(0);
    const restored = fs.readFileSync(sessions.chunkmount.path('r'));
    expect(restored.equals(fs.readFileSync(sessions.image))).toBe(true);
  });

  const replaceLine = (number: number, change: (line: string) => string) =>
    editSums((lines) => {
      lines[number] = change(lines[number]!);
    });

  it.each([
    ['a lost line', () => replaceLine(3, (line) => line.replace('#', '!')), /damaged in line 4/],
    [
      'a line without the hash of zeros',
      () => replaceLine(3, (line) => line.replace(/^#./, '#0')),
      /3 is missing/,
    ],
    ['lines that are cut off', () => editSums((lines) => lines.splice(500)), /cut off/],
  ])('takes nothing for zeros because of %s', async (_, damage, problem) => {
    damage();
    const { exitCode, problems } = await verify();
    expect([exitCode, (await restore()).exitCode]).toEqual([4, 4]);
    expect(problems.join('\n')).toMatch(problem);
  });

  it('believes a file rather than a line that says there is none, but not that of zeros', async () => {
    replaceLine(2, (line) => `#${line.slice(0, 16)} ${line.slice(18)}`);
    expect((await verify()).exitCode).toBe(0);
    expect((await restore()).exitCode).toBe(0);
    const restored = fs.readFileSync(sessions.chunkmount.path('r'));
    expect(restored.equals(fs.readFileSync(sessions.image))).toBe(true);
  });

  it('is refused in words by a manifest of version 1', async () => {
    const manifest = path.join(sessions.copy, 'manifest.json');
    const text = fs.readFileSync(manifest, 'utf8');
    expect(JSON.parse(text)).toMatchObject({
      version: 2,
      disks: [{ zeroChunks: 'skip', directory: 'disk0' }],
    });
    fs.chmodSync(manifest, 0o600);
    fs.writeFileSync(manifest, text.replace('"version": 2', '"version": 1'));
    expect((await restore()).exitCode).toBe(4);
  });
});

function cli(): string {
  return path.resolve(import.meta.dirname, '../../dist/cli.js');
}
