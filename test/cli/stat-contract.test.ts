import * as fs from 'node:fs';
import * as path from 'node:path';
import { pathToFileURL } from 'node:url';
import { execa } from 'execa';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { findProcesses } from '../../src/host/process-list.js';
import { chunksAmong, rsyncCommand, rsyncReport, TestChunkmount } from '../support/chunkmount.js';
import { noise } from '../support/images.js';
import { fuseDevice, program, requireAll, root } from '../support/requirements.js';
import {
  below,
  chunksOf,
  differing,
  directoriesOf,
  type EntryStat,
  parseStats,
  STAT_SCRIPT,
  statTree,
} from './tree-stats.js';

const CHUNK = 4096;
/** Two chunk directories, the second one with three chunks, the last of them short. */
const SIZE = 258 * CHUNK + 1024;

type Env = Readonly<Record<string, string>>;

/** The program with fixtures loaded first. */
function preload(env: Env, ...fixtures: readonly string[]): Env {
  const urls = fixtures.map((name) => pathToFileURL(path.join(import.meta.dirname, 'fixtures', name)).href);
  return { ...env, NODE_OPTIONS: urls.map((url) => `--import=${url}`).join(' ') };
}

/** A clock that stands still at `ms` since the epoch. */
function stopped(ms: number): Env {
  return preload({ TEST_CLOCK: `=${ms}` }, 'clock.mjs');
}

/** Sessions that follow each other faster than this wait for the clock: see manifest-time.ts. */
const STEP_MS = 3_000;

describe('the stat contract over sessions', () => {
  let chunkmount: TestChunkmount;
  let image: string;
  let tree: string;
  let copy: string;
  let sessions = 0;
  let writes = 0;

  beforeAll(() =>
    requireAll(
      root,
      fuseDevice,
      program('rsync'),
      program('xxhsum', 'xxhash'),
      program('qemu-img', 'qemu-utils'),
    ),
  );

  function begin(): void {
    chunkmount = new TestChunkmount();
    image = chunkmount.path('disk.raw');
    tree = chunkmount.tree('demo');
    copy = chunkmount.path('copy');
    fs.writeFileSync(image, noise(SIZE, 1));
  }

  const end = () => chunkmount.close();

  /** For the next session: a clock that runs, so far ahead that the session need not wait for it. */
  const later = (env: Env = {}, ...fixtures: string[]) =>
    preload({ ...env, TEST_CLOCK: `+${STEP_MS * ++sessions}` }, 'clock.mjs', ...fixtures);

  const given = (options: readonly string[], images = image) => [
    `--image=${images}`,
    '--name=demo',
    `--chunk-size=${CHUNK}`,
    ...options,
  ];

  async function mount(options: readonly string[] = [], env: Env = later()): Promise<void> {
    const { exitCode, stderr } = await chunkmount.run(given(options), env);
    expect({ exitCode, stderr }).toMatchObject({ exitCode: 0 });
  }

  async function cleanup(): Promise<void> {
    await chunkmount.succeed('cleanup', '--name=demo');
  }

  /** One session; what its tree shows, and what was said. */
  async function told(
    options: readonly string[] = [],
    images = image,
  ): Promise<{ entries: Map<string, EntryStat>; stderr: string }> {
    const command = ['sh', '-c', STAT_SCRIPT, 'sh', tree];
    const args = ['run', ...given(options, images), '--', ...command];
    const { exitCode, stdout, stderr } = await chunkmount.run(args, later());
    expect({ exitCode, stderr }).toMatchObject({ exitCode: 0 });
    return { entries: parseStats(stdout), stderr };
  }

  const session = async (options: readonly string[] = [], images = image) =>
    (await told(options, images)).entries;

  /** One session and an `rsync -a --delete` of its tree; the sums of the copy must fit. Returns the chunks that were sent. */
  async function backup(env: Env = later()): Promise<{ chunks: string[]; literalBytes: number }> {
    const result = await chunkmount.run(['run', ...given([]), '--', ...rsyncCommand(tree, copy)], env);
    expect(result).toMatchObject({ exitCode: 0 });
    const { files, literalBytes } = rsyncReport(result.stdout);
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
  function change(index: number): void {
    write(index * CHUNK + 100, Buffer.from(`written ${++writes}`));
  }

  /** As it was at first. */
  function revert(index: number): void {
    write(index * CHUNK, noise(SIZE, 1).subarray(index * CHUNK, (index + 1) * CHUNK));
  }

  /** Chunks and directories: everything whose times are promised. */
  function promised(entries: ReadonlyMap<string, EntryStat>): Map<string, EntryStat> {
    return new Map([...chunksOf(entries), ...directoriesOf(entries)]);
  }

  /** As the kernel's out-of-memory killer would; then cleans up. */
  async function killDaemon(): Promise<void> {
    const [daemon] = findProcesses((argv) =>
      argv.includes(path.join(chunkmount.stateDirectory, 'sessions/demo')),
    );
    process.kill(daemon!.pid, 'SIGKILL');
    const { exitCode, stderr } = await chunkmount.run(['cleanup', '--name=demo']);
    expect({ exitCode, stderr }).toMatchObject({ exitCode: 1, stderr: expect.stringContaining('died') });
  }

  describe('for rsync', () => {
    beforeEach(begin);
    afterEach(end);

    it('sends nothing when nothing was written, then exactly the chunks that were', async () => {
      expect((await backup()).chunks).toHaveLength(259);
      const nothing = await backup();
      expect(nothing.chunks).toEqual([]);
      const manifest = fs.statSync(path.join(copy, 'manifest.json')).size;
      const sums = fs.statSync(path.join(copy, 'disk0.xxh64')).size;
      expect(nothing.literalBytes).toBeLessThanOrEqual(manifest + sums);
      for (const index of [0, 255, 256, 258]) change(index);
      // Written, but the same as before.
      revert(7);
      expect((await backup()).chunks).toEqual([
        'disk0/000000/00000000',
        'disk0/000000/000000ff',
        'disk0/000001/00000100',
        'disk0/000001/00000102',
      ]);
    });

    it('sends what was written between two sessions in one second, and after the clock was set back', async () => {
      const now = Date.now();
      await backup(stopped(now));
      for (const [clock, chunk] of [
        [now, 3],
        [now - 86_400_000, 3],
        [now - 86_400_000, 4],
      ] as const) {
        change(chunk);
        expect((await backup(stopped(clock))).chunks).toEqual([`disk0/000000/0000000${chunk}`]);
      }
    });
  });

  describe('from one to the next', () => {
    let last: Map<string, EntryStat>;

    beforeAll(async () => {
      begin();
      last = await session();
      expect(chunksOf(last).size).toBe(259);
    });
    afterAll(end);

    it('keeps inodes, mtimes, ctimes and directories when nothing was written', async () => {
      const second = await session();
      expect(differing(promised(last), promised(second))).toEqual([]);
      for (const { mtime, ctime } of chunksOf(second).values()) {
        expect(mtime % 1).toBe(0);
        expect(ctime).toBe(mtime);
      }
    });

    it('keeps them when a chunk is looked at in any order, or first read; and after the daemon was killed', async () => {
      await mount();
      const now = Date.now() + STEP_MS * sessions;
      for (const name of [...chunksOf(last).keys()].reverse()) {
        const file = path.join(tree, name);
        if (name.endsWith('7')) fs.readFileSync(file);
        const { ino, mtimeMs } = fs.statSync(file);
        expect([ino, mtimeMs / 1000], name).toEqual([last.get(name)!.inode, last.get(name)!.mtime]);
      }
      expectNewestManifest(await statTree(tree), now);
      await killDaemon();
      // The next test sees that nothing but what it changes has changed.
    });

    /** Later than every chunk, and no later than the end of the mount command. */
    function expectNewestManifest(entries: ReadonlyMap<string, EntryStat>, now: number): void {
      const manifest = entries.get('manifest.json')!.mtime;
      expect(manifest).toBeLessThanOrEqual(now / 1000);
      for (const [name, { mtime }] of entries) {
        if (name !== 'manifest.json') expect(mtime, name).toBeLessThan(manifest);
      }
    }

    it('gives a changed chunk a time later than it ever had, and touches nothing else', async () => {
      const chunk = 'disk0/000000/00000005';
      // What it was before comes last: but not with the time that it had then.
      for (const edit of [change, revert]) {
        edit(5);
        const now = await session();
        expect(differing(promised(last), promised(now))).toEqual([chunk]);
        expect(now.get(chunk)!.mtime).toBeGreaterThan(last.get(chunk)!.mtime);
        expect(now.get(chunk)!.inode).toBe(last.get(chunk)!.inode);
        last = now;
      }
    });

    it('keeps what a grown disk had, and when it shrinks again', async () => {
      fs.truncateSync(image, 600 * CHUNK);
      const grown = await session();
      const changed = differing(promised(last), promised(grown));
      // The last chunk was short; the second directory has more chunks now.
      expect(changed.slice(0, 4)).toEqual([
        'disk0',
        'disk0/000001',
        'disk0/000001/00000102',
        'disk0/000001/00000103',
      ]);
      expect(changed).toHaveLength(600 - 259 + 4);
      for (const name of ['disk0', 'disk0/000001', 'disk0/000001/00000102'])
        expect(grown.get(name)!.mtime, name).toBeGreaterThan(last.get(name)!.mtime);
      fs.truncateSync(image, SIZE);
      const shrunk = await session();
      const stillThere = new Map([...promised(grown)].filter(([name]) => shrunk.has(name)));
      expect(differing(stillThere, promised(shrunk))).toEqual([
        'disk0',
        'disk0/000001',
        'disk0/000001/00000102',
      ]);
      fs.truncateSync(image, 600 * CHUNK);
      last = await session();
      for (const [name, { mtime }] of chunksOf(last))
        expect(mtime, name).toBeGreaterThanOrEqual(grown.get(name)!.mtime);
    });

    it('moves no inode of a disk when there is another one, or one less', async () => {
      const other = chunkmount.path('other.raw');
      fs.writeFileSync(other, noise(SIZE, 3));
      const images = `${image},${other}`;
      const both = await session([], images);
      expect(differing(below(promised(last), 'disk0'), below(promised(both), 'disk0'))).toEqual([]);
      expect(both.get('')!.mtime).toBeGreaterThan(last.get('')!.mtime);
      const inodes = [...both.values()].map(({ inode }) => inode);
      expect(new Set(inodes).size).toBe(inodes.length);
      const second = await session(['--exclude=disk0'], images);
      expect(differing(below(promised(both), 'disk1'), below(promised(second), 'disk1'))).toEqual([]);
      expect([...second.keys()].filter((name) => name.startsWith('disk0'))).toEqual([]);
      // The index of a disk that was left out is still there.
      const bothAgain = await session([], images);
      expect(differing(chunksOf(both), chunksOf(bothAgain))).toEqual([]);
    });
  });

  describe('when they are cut off', () => {
    beforeEach(begin);
    afterEach(end);

    it('gives times that only grow, whatever the clock does, and a session that is killed', async () => {
      const latest = new Map<string, number>();
      const now = Date.now();
      let before = new Map<string, EntryStat>();
      const clocks = [now, now + 5_000, now - 3_600_000, now - 3_600_000, now];
      for (const [number, clock] of clocks.entries()) {
        await mount([], stopped(clock));
        const chunks = chunksOf(await statTree(tree));
        const changed = [number, (number * 7) % 20, 256];
        if (number > 0) expect(differing(before, chunks).length).toBeLessThanOrEqual(6);
        for (const [name, entry] of chunks) {
          const old = before.get(name);
          if (old !== undefined && differing(new Map([[name, old]]), new Map([[name, entry]])).length > 0) {
            expect(entry.mtime, `${name} in session ${number}`).toBeGreaterThan(latest.get(name)!);
            expect(entry.inode).toBe(old.inode);
          }
          latest.set(name, Math.max(entry.mtime, latest.get(name) ?? 0));
        }
        before = chunks;
        if (number === 1 || number === 3) await killDaemon();
        else await cleanup();
        for (const index of changed) change(index);
      }
    });

    it('gives a chunk that is as it was a time later than the killed session showed, before it saved anything', async () => {
      fs.writeFileSync(image, noise(16 * 1024 * 1024, 2));
      const options = ['--chunk-size=64K'];
      const before = fs.readFileSync(image).subarray(100 * 65_536, 101 * 65_536);
      const first = await session(options);
      write(100 * 65_536, Buffer.from('changed'));
      const name = 'disk0/000000/00000064';
      // The scan would take a minute.
      await mount(options, later({ TEST_READ_MS: '500' }, 'slow-disk.mjs'));
      const shown = fs.statSync(path.join(tree, name)).mtimeMs / 1000;
      await killDaemon();
      write(100 * 65_536, before);
      const last = await session(options);
      expect(shown).toBeGreaterThan(first.get(name)!.mtime);
      expect(last.get(name)!.mtime).toBeGreaterThan(shown);
      expect(differing(promised(first), promised(last))).toEqual([name]);
      const index = path.join(chunkmount.stateDirectory, 'index/demo');
      expect(fs.readdirSync(index).filter((file) => file.includes('changes'))).toEqual([]);
      expect(differing(promised(last), promised(await session(options)))).toEqual([]);
    });

    it('keeps everything that was looked at half-way', async () => {
      fs.writeFileSync(image, noise(16 * 1024 * 1024, 2));
      const options = ['--chunk-size=64K'];
      const first = await session(options);
      write(100 * 65_536, Buffer.from('changed'));
      await mount(options, later({ TEST_READ_MS: '500' }, 'slow-disk.mjs'));
      const early = fs.statSync(path.join(tree, 'disk0/000000/00000000'));
      const { sessions: shown } = JSON.parse(await chunkmount.succeed('list', '--json'));
      expect(shown[0].daemon.scan.resolved).toBeLessThan(200);
      await cleanup();
      expect(early.mtimeMs / 1000).toBe(first.get('disk0/000000/00000000')!.mtime);
      expect(differing(promised(first), promised(await session(options)))).toEqual(['disk0/000000/00000064']);
    });
  });

  describe('counts every chunk as changed, with one warning,', () => {
    const index = () => path.join(chunkmount.stateDirectory, 'index/demo/disk0.v1');
    let last: Map<string, EntryStat>;

    beforeAll(async () => {
      begin();
      last = await session();
    });
    afterAll(end);

    async function expectAllChanged(warning: RegExp, options: readonly string[] = []): Promise<void> {
      const { entries, stderr } = await told(options);
      expect(stderr.match(/warning/g), stderr).toHaveLength(1);
      expect(stderr).toMatch(warning);
      for (const [name, { mtime }] of promised(entries)) {
        if (name !== '') expect(mtime, name).toBeGreaterThan(last.get(name)?.mtime ?? 0);
      }
      last = entries;
    }

    it('with an index that is cut off', async () => {
      fs.truncateSync(index(), 60);
      await expectAllChanged(/disk disk0.*index.*all chunks count as changed/);
    });

    it('without an index, though there was one', async () => {
      fs.rmSync(index());
      await expectAllChanged(/disk disk0.*all chunks count as changed/);
    });

    it('with an index that is damaged among its hashes; and never again', async () => {
      flip(index(), 200);
      const { entries, stderr } = await told();
      expect(stderr).toMatch(/warning: .*index of demo was damaged/);
      for (const [name, { mtime }] of chunksOf(entries))
        expect(mtime, name).toBeGreaterThan(last.get(name)!.mtime);
      const again = await told();
      expect(again.stderr).not.toContain('warning');
      expect(differing(promised(entries), promised(again.entries))).toEqual([]);
      last = entries;
    });

    it('with another chunk size', () => expectAllChanged(/chunk size was 4K and is 8K/, ['--chunk-size=8K']));

    function flip(file: string, offset: number): void {
      const bytes = fs.readFileSync(file);
      bytes[offset]! ^= 0x10;
      fs.writeFileSync(file, bytes);
    }
  });
});
