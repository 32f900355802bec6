import * as fs from 'node:fs';
import { afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { findProcesses } from '../../src/host/process-list.js';
import { fuseDevice, program, requireAll, root } from '../support/requirements.js';
import { CHUNK, CHUNKS, TrackedDisk } from './tracked-disk.js';

/** Chunks of the image that hold data. */
const DATA_CHUNKS = CHUNKS - 10;

describe('an image that was not written since', () => {
  let disk: TrackedDisk;

  beforeAll(() => requireAll(root, fuseDevice, program('qemu-img', 'qemu-utils')));
  beforeEach(() => {
    disk = new TrackedDisk();
  });
  afterEach(() => disk.close());

  it('is not read again, but for the sample of the audit', async () => {
    const first = await disk.good();
    expect(first).toMatchObject({ kept: 0, audited: 0, bytesRead: DATA_CHUNKS * CHUNK - (CHUNK - 1024) });
    const second = await disk.good();
    expect(second.stats).toEqual(first.stats);
    expect(second).toMatchObject({ kept: CHUNKS });
    expect(second.audited).toBeGreaterThan(10);
    expect(second.bytesRead).toBeLessThanOrEqual(16 * CHUNK);
    const third = await disk.good(['--track=still', '--audit=100%']);
    expect(third.stats).toEqual(first.stats);
    // Nor are its sums, by whoever goes by what stat says.
    expect([second.sumsStat, third.sumsStat]).toEqual([first.sumsStat, first.sumsStat]);
    expect(third).toMatchObject({ kept: CHUNKS, audited: DATA_CHUNKS });
    // What is read is not what the index says, but the disk.
    const { stdout } = await disk.chunkmount.run(
      ['run', ...disk.given(), '--', 'sh', '-c', 'cat "$CHUNKMOUNT_TREE"/disk0/*/* | base64 -w0'],
      disk.clock(),
    );
    expect(Buffer.from(stdout, 'base64').equals(fs.readFileSync(disk.image))).toBe(true);
  });

  it('has sums that look new when they may be', async () => {
    const seen = new Set<string>();
    const looksNew = async (options: readonly string[] = []) => {
      const { exitCode, sumsStat } = await disk.session(options);
      expect(exitCode).toBe(0);
      expect(seen.has(sumsStat)).toBe(false);
      seen.add(sumsStat);
    };
    await looksNew();
    disk.change(3);
    await looksNew();
    expect(seen).toContain((await disk.good()).sumsStat);
    await looksNew(['--track=none']);
    await looksNew(['--zero-chunks=skip']);
    await looksNew();
    // Of a session that was killed nobody knows what it showed.
    await disk.chunkmount.run(disk.given(), disk.clock());
    const session = `${disk.chunkmount.stateDirectory}/sessions/demo`;
    for (const { pid } of findProcesses((argv) => argv.at(-1) === session)) process.kill(pid, 'SIGKILL');
    await disk.chunkmount.run(['cleanup', '--name=demo']);
    await looksNew();
  });

  describe('the audit', () => {
    /** All chunks with another mtime than in `before`. */
    const later = (before: ReadonlyMap<string, string>, after: ReadonlyMap<string, string>) =>
      [...after].filter(([name, line]) => before.get(name) !== line).map(([name]) => name);

    it('finds one chunk in all, before anything is shown', async () => {
      const first = await disk.good();
      disk.change(33);
      disk.hideWrites();
      const found = await disk.session(['--audit=100%']);
      expect(found).toMatchObject({ exitCode: 0, kept: 0, sums: disk.expectedSums() });
      expect(found.stderr).toContain(
        'chunk disk0/000000/00000021 had changed although tracker still said no',
      );
      expect(later(first.stats, found.stats)).toEqual(['000000/00000021']);
      // What another tracker may go on from: the time that was shown.
      disk.edit(({ sums }) =>
        expect(found.sumsStat.split(' ')[1]).toMatch(new RegExp(`^${sums.mtime}\\.0+$`)),
      );
      // Not believed, and everybody is told, until another session has read it all.
      const second = await disk.session();
      expect(second).toMatchObject({ exitCode: 0, kept: 0, sums: disk.expectedSums() });
      expect(second.stderr).toContain('it was wrong in an earlier session');
      expect(second.stderr).toContain('chunk disk0/000000/00000021 had changed');
      expect(await disk.good()).toMatchObject({ kept: CHUNKS });
    });

    it('finds by chance what changed in many places, and list tells', async () => {
      await disk.good();
      disk.changeAll();
      disk.hideWrites();
      await disk.chunkmount.run(disk.given(), disk.clock());
      const tree = disk.chunkmount.tree('demo');
      expect(fs.readFileSync(`${tree}/disk0.xxh64`, 'utf8')).toBe(disk.expectedSums());
      const deadline = Date.now() + 60_000;
      let told = '';
      while (!told.includes('had changed') && Date.now() < deadline)
        told = (await disk.chunkmount.run(['list'])).stderr;
      expect(told).toMatch(/disk disk0: chunk disk0\/000000\/000000[0-9a-f]{2} had changed although/);
      const { sessions } = JSON.parse(await disk.chunkmount.succeed('list', '--json'));
      expect(sessions[0]).toMatchObject({ state: 'mounted', daemon: { scan: { kept: 0, changed: CHUNKS } } });
      const { exitCode, stderr } = await disk.chunkmount.run(['cleanup', '--name=demo']);
      expect({ exitCode, stderr }).toMatchObject({
        exitCode: 0,
        stderr: expect.stringContaining('had changed'),
      });
    });

    it('fails the session when it is too late', async () => {
      await disk.good();
      // The image says so itself, so the sample has no such chunks.
      disk.punch(20, 22);
      disk.hideWrites();
      const found = await disk.session();
      expect(found).toMatchObject({ exitCode: 1, sums: disk.expectedSums() });
      expect(found.stderr).toMatch(/not whole: disk disk0: chunk disk0\/000000\/0000001[45] had changed/);
      const second = await disk.session();
      expect(second).toMatchObject({ exitCode: 0, kept: 0, sums: disk.expectedSums() });
      expect(await disk.good()).toMatchObject({ kept: CHUNKS });
    });
  });

  it('has chunks of written zeros with no blocks, and of data that has their hash with blocks', async () => {
    const fd = fs.openSync(disk.image, 'r+');
    fs.writeSync(fd, Buffer.alloc(CHUNK), 0, CHUNK, 5 * CHUNK);
    fs.closeSync(fd);
    const first = await disk.good();
    const blocks = (session: typeof first, name: string) => session.stats.get(name)?.split(' ').at(-1);
    expect([blocks(first, '000000/00000005'), blocks(first, '000000/00000006')]).toEqual(['0', '8']);
    const second = await disk.good();
    expect(second).toMatchObject({ kept: CHUNKS });
    expect(second.stats).toEqual(first.stats);
    // Nobody knows 4096 bytes of that hash: the record says that these are some.
    disk.edit((record) => {
      record.falseZeros = [5];
    });
    expect(blocks(await disk.good(), '000000/00000005')).toBe('8');
  });
});
