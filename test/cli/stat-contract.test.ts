import * as fs from 'node:fs';
import * as path from 'node:path';
import { pathToFileURL } from 'node:url';
import { execa } from 'execa';
import { afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { findProcesses } from '../../src/host/process-list.js';
import { chunksAmong, rsync, TestChunkmount } from '../support/chunkmount.js';
import { noise } from '../support/images.js';
import { fuseDevice, program, requireAll, root } from '../support/requirements.js';
import { below, chunksOf, differing, directoriesOf, type EntryStat, statTree } from './tree-stats.js';

const CHUNK = 4096;
/** Two chunk directories, the second one with three chunks, the last of them short. */
const SIZE = 258 * CHUNK + 1024;

type Env = Readonly<Record<string, string>>;

function preload(fixture: string, env: Env): Env {
  const url = pathToFileURL(path.join(import.meta.dirname, 'fixtures', fixture)).href;
  return { ...env, NODE_OPTIONS: `--import=${url}` };
}

/** A clock that stands still at `ms` since the epoch. */
function stopped(ms: number): Env {
  return preload('clock.mjs', { TEST_CLOCK: `=${ms}` });
}

/** A clock that is `ms` ahead. */
function ahead(ms: number): Env {
  return preload('clock.mjs', { TEST_CLOCK: `+${ms}` });
}

describe('the stat contract over sessions', () => {
  let chunkmount: TestChunkmount;
  let image: string;
  let tree: string;
  let copy: string;

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
    chunkmount = new TestChunkmount();
    image = chunkmount.path('disk.raw');
    tree = chunkmount.tree('demo');
    copy = chunkmount.path('copy');
    fs.writeFileSync(image, noise(SIZE, 1));
  });

  afterEach(() => chunkmount.close());

  async function mount(options: readonly string[] = [], env: Env = {}, images = image): Promise<string> {
    const args = [`--image=${images}`, '--name=demo', `--chunk-size=${CHUNK}`, ...options];
    const { exitCode, stderr } = await chunkmount.run(args, env);
    expect({ exitCode, stderr }).toMatchObject({ exitCode: 0 });
    return stderr;
  }

  async function cleanup(): Promise<void> {
    await chunkmount.succeed('cleanup', '--name=demo');
  }

  /** One session; what its tree shows. */
  async function session(
    options: readonly string[] = [],
    env: Env = {},
    images = image,
  ): Promise<Map<string, EntryStat>> {
    await mount(options, env, images);
    const entries = await statTree(tree);
    await cleanup();
    return entries;
  }

  /** One session and an `rsync -a --delete` of its tree; the sums of the copy must fit. Returns the chunks that were sent. */
  async function backup(env: Env = {}): Promise<{ chunks: string[]; literalBytes: number }> {
    await mount([], env);
    const { files, literalBytes } = await rsync(tree, copy);
    await cleanup();
    const { exitCode, stderr } = await execa('xxhsum', ['--quiet', '-c', 'disk0.xxh64'], {
      cwd: copy,
      reject: false,
    });
    expect({ exitCode, stderr }).toEqual({ exitCode: 0, stderr: '' });
    return { chunks: chunksAmong(files), literalBytes };
  }

  function write(offset: number, bytes: Uint8Array): void {
    const fd = fs.openSync(image, 'r+');
    fs.writeSync(fd, bytes, 0, bytes.length, offset);
    fs.closeSync(fd);
  }

  /** Makes chunk `index` one that it never was. */
  let writes = 0;
  function change(index: number): void {
    write(index * CHUNK + 100, Buffer.from(`written ${++writes}`));
  }

  /** Chunks and directories: everything whose times are promised. */
  function promised(entries: ReadonlyMap<string, EntryStat>): Map<string, EntryStat> {
    return new Map([...chunksOf(entries), ...directoriesOf(entries)]);
  }

  describe('for rsync', () => {
    it('sends nothing when nothing was written', async () => {
      expect((await backup()).chunks).toHaveLength(259);
      expect((await backup()).chunks).toEqual([]);
      const manifest = fs.statSync(path.join(copy, 'manifest.json')).size;
      const sums = fs.statSync(path.join(copy, 'disk0.xxh64')).size;
      expect((await backup()).literalBytes).toBeLessThanOrEqual(manifest + sums);
    });

    it('sends exactly the chunks that were written', async () => {
      await backup();
      for (const index of [0, 255, 256, 258]) change(index);
      // Written, but the same as before.
      write(7 * CHUNK, noise(SIZE, 1).subarray(7 * CHUNK, 8 * CHUNK));
      expect((await backup()).chunks).toEqual([
        'disk0/000000/00000000',
        'disk0/000000/000000ff',
        'disk0/000001/00000100',
        'disk0/000001/00000102',
      ]);
      expect((await backup()).chunks).toEqual([]);
    });

    it('sends what was written between two sessions in one second', async () => {
      const now = stopped(Date.now());
      await backup(now);
      change(3);
      expect((await backup(now)).chunks).toEqual(['disk0/000000/00000003']);
      expect((await backup(now)).chunks).toEqual([]);
      change(3);
      expect((await backup(now)).chunks).toEqual(['disk0/000000/00000003']);
    });

    it('sends what was written after the clock was set back', async () => {
      await backup(ahead(86_400_000));
      change(3);
      expect((await backup()).chunks).toEqual(['disk0/000000/00000003']);
      expect((await backup()).chunks).toEqual([]);
      change(4);
      expect((await backup(ahead(-86_400_000))).chunks).toEqual(['disk0/000000/00000004']);
    });
  });

  it('keeps inodes, mtimes, ctimes and directories when nothing was written', async () => {
    const first = await session();
    expect(chunksOf(first).size).toBe(259);
    const second = await session();
    expect(differing(promised(first), promised(second))).toEqual([]);
    for (const { mtime, ctime } of chunksOf(second).values()) {
      expect(mtime % 1).toBe(0);
      expect(ctime).toBe(mtime);
    }
  });

  it('keeps them when a chunk is looked at in any order, or first read', async () => {
    const first = await session();
    await mount();
    const names = [...chunksOf(first).keys()].reverse();
    for (const name of names) {
      const file = path.join(tree, name);
      if (name.endsWith('7')) fs.readFileSync(file);
      const { ino, mtimeMs } = fs.statSync(file);
      expect([ino, mtimeMs / 1000], name).toEqual([first.get(name)!.inode, first.get(name)!.mtime]);
    }
    await cleanup();
  });

  it('gives a changed chunk a time later than it ever had, and touches nothing else', async () => {
    const first = await session();
    change(5);
    const second = await session();
    const chunk = 'disk0/000000/00000005';
    expect(differing(promised(first), promised(second))).toEqual([chunk]);
    expect(second.get(chunk)!.mtime).toBeGreaterThan(first.get(chunk)!.mtime);
    expect(second.get(chunk)!.inode).toBe(first.get(chunk)!.inode);
    // What it was before: but not with the time that it had then.
    write(5 * CHUNK, noise(SIZE, 1).subarray(5 * CHUNK, 6 * CHUNK));
    const third = await session();
    expect(differing(promised(second), promised(third))).toEqual([chunk]);
    expect(third.get(chunk)!.mtime).toBeGreaterThan(second.get(chunk)!.mtime);
  });

  it('gives times that only grow, whatever the clock does, and a session that is killed', async () => {
    const latest = new Map<string, number>();
    const now = Date.now();
    let before = new Map<string, EntryStat>();
    const clocks = [now, now, now + 5_000, now - 3_600_000, now - 3_600_000, now + 1, now - 1_000, now];
    for (const [number, clock] of clocks.entries()) {
      await mount([], stopped(clock));
      const chunks = chunksOf(await statTree(tree));
      const changed = [number, (number * 7) % 20, 256];
      if (number > 0) expect(differing(before, chunks).length).toBeLessThanOrEqual(6);
      for (const [name, { mtime, inode }] of chunks) {
        const old = before.get(name);
        if (
          old !== undefined &&
          differing(new Map([[name, old]]), new Map([[name, chunks.get(name)!]])).length > 0
        ) {
          expect(mtime, `${name} in session ${number}`).toBeGreaterThan(latest.get(name)!);
          expect(inode).toBe(old.inode);
        }
        latest.set(name, Math.max(mtime, latest.get(name) ?? 0));
      }
      before = chunks;
      if (number % 3 === 2) await killDaemon();
      else await cleanup();
      for (const index of changed) change(index);
    }
  });

  /** As the kernel's out-of-memory killer would; then cleans up. */
  async function killDaemon(): Promise<void> {
    const [daemon] = findProcesses((argv) =>
      argv.includes(path.join(chunkmount.stateDirectory, 'sessions/demo')),
    );
    process.kill(daemon!.pid, 'SIGKILL');
    const { exitCode, stderr } = await chunkmount.run(['cleanup', '--name=demo']);
    expect({ exitCode, stderr }).toMatchObject({ exitCode: 1, stderr: expect.stringContaining('died') });
  }

  it('keeps everything after the daemon was killed', async () => {
    const first = await session();
    await mount();
    await statTree(tree);
    await killDaemon();
    expect(differing(promised(first), promised(await session()))).toEqual([]);
  });

  it('keeps everything after a session that was cut off half-way', async () => {
    fs.writeFileSync(image, noise(64 * 1024 * 1024, 2));
    const options = ['--chunk-size=256K'];
    const first = await session(options);
    write(100 * 262_144, Buffer.from('changed'));
    await mount(options, preload('slow-disk.mjs', { TEST_READ_MS: '100' }));
    const early = fs.statSync(path.join(tree, 'disk0/000000/00000000'));
    const { sessions } = JSON.parse(await chunkmount.succeed('list', '--json'));
    expect(sessions[0].daemon.scan.resolved).toBeLessThan(200);
    await cleanup();
    expect(early.mtimeMs / 1000).toBe(first.get('disk0/000000/00000000')!.mtime);
    expect(differing(promised(first), promised(await session(options)))).toEqual(['disk0/000000/00000064']);
  });

  it('keeps what a grown disk had, and when it shrinks again', async () => {
    const first = await session();
    fs.truncateSync(image, 600 * CHUNK);
    const grown = await session();
    const changed = differing(promised(first), promised(grown));
    // The last chunk was short; the second directory has more chunks now.
    expect(changed.slice(0, 4)).toEqual([
      'disk0',
      'disk0/000001',
      'disk0/000001/00000102',
      'disk0/000001/00000103',
    ]);
    expect(changed).toHaveLength(600 - 259 + 4);
    for (const name of ['disk0', 'disk0/000001', 'disk0/000001/00000102'])
      expect(grown.get(name)!.mtime, name).toBeGreaterThan(first.get(name)!.mtime);
    fs.truncateSync(image, SIZE);
    const shrunk = await session();
    const stillThere = new Map([...promised(grown)].filter(([name]) => shrunk.has(name)));
    expect(differing(stillThere, promised(shrunk))).toEqual([
      'disk0',
      'disk0/000001',
      'disk0/000001/00000102',
    ]);
    fs.truncateSync(image, 600 * CHUNK);
    const again = await session();
    for (const [name, { mtime }] of chunksOf(again))
      expect(mtime, name).toBeGreaterThanOrEqual(grown.get(name)!.mtime);
  });

  it('moves no inode of a disk when there is another one, or one less', async () => {
    const other = chunkmount.path('other.raw');
    fs.writeFileSync(other, noise(SIZE, 3));
    const alone = await session();
    const both = await session([], {}, `${image},${other}`);
    expect(differing(below(promised(alone), 'disk0'), below(promised(both), 'disk0'))).toEqual([]);
    expect(both.get('')!.mtime).toBeGreaterThan(alone.get('')!.mtime);
    const inodes = [...both.values()].map(({ inode }) => inode);
    expect(new Set(inodes).size).toBe(inodes.length);
    const second = await session(['--exclude=disk0'], {}, `${image},${other}`);
    expect(differing(below(promised(both), 'disk1'), below(promised(second), 'disk1'))).toEqual([]);
    expect([...second.keys()].filter((name) => name.startsWith('disk0'))).toEqual([]);
    // The index of a disk that was left out is still there.
    const bothAgain = await session([], {}, `${image},${other}`);
    expect(differing(chunksOf(both), chunksOf(bothAgain))).toEqual([]);
  });

  describe('counts every chunk as changed, with one warning,', () => {
    let first: Map<string, EntryStat>;
    const index = () => path.join(chunkmount.stateDirectory, 'index/demo/disk0.v1');

    beforeEach(async () => {
      first = await session();
    });

    async function expectAllChanged(warning: RegExp, options: readonly string[] = []): Promise<void> {
      const stderr = await mount(options);
      const now = await statTree(tree);
      await cleanup();
      expect(stderr.match(/warning/g), stderr).toHaveLength(1);
      expect(stderr).toMatch(warning);
      for (const [name, { mtime }] of promised(now)) {
        if (name === '') continue;
        expect(mtime, name).toBeGreaterThan(first.get(name)?.mtime ?? 0);
      }
      // And never again.
      expect(await mount(options)).not.toContain('warning');
      expect(differing(promised(now), promised(await statTree(tree)))).toEqual([]);
      await cleanup();
    }

    it('with another chunk size', () => expectAllChanged(/chunk size was 4K and is 8K/, ['--chunk-size=8K']));

    it.each([
      ['cut off', (file: string) => fs.truncateSync(file, 60)],
      ['damaged in its times of directories', (file: string) => flip(file, 48)],
      ['of a later version', (file: string) => flip(file, 8)],
    ])('with an index that is %s', async (_, damage) => {
      damage(index());
      await expectAllChanged(/disk disk0.*index.*all chunks count as changed/);
    });

    it('with an index that is damaged among its hashes', async () => {
      flip(index(), 200);
      await mount();
      const now = await statTree(tree);
      const { exitCode, stderr } = await chunkmount.run(['cleanup', '--name=demo']);
      expect(exitCode).toBe(0);
      expect(stderr).toMatch(/warning: .*index of demo was damaged/);
      for (const [name, { mtime }] of chunksOf(now))
        expect(mtime, name).toBeGreaterThan(first.get(name)!.mtime);
      expect(differing(chunksOf(now), chunksOf(await session()))).toEqual([]);
    });

    it('without an index, though there was one', async () => {
      fs.rmSync(index());
      await expectAllChanged(/disk disk0.*all chunks count as changed/);
    });

    function flip(file: string, offset: number): void {
      const bytes = fs.readFileSync(file);
      bytes[offset]! ^= 0x10;
      fs.writeFileSync(file, bytes);
    }
  });

  it('has a manifest that is newer than every chunk, and no later than the end of the mount command', async () => {
    await mount();
    const now = Date.now();
    const entries = await statTree(tree);
    const manifest = fs.statSync(path.join(tree, 'manifest.json'));
    expect(manifest.mtimeMs).toBeLessThanOrEqual(now);
    for (const [name, { mtime }] of entries) {
      if (name !== 'manifest.json') expect(mtime, name).toBeLessThan(manifest.mtimeMs / 1000);
    }
    await cleanup();
  });
});
