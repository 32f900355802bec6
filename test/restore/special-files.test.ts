import { spawn } from 'node:child_process';
import * as fs from 'node:fs';
import * as path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterAll, beforeAll, describe, expect, it, onTestFinished } from 'vitest';
import { run } from '../../src/host/exec.js';
import { TestChunkmount } from '../support/chunkmount.js';
import { build, fuseDevice, requireAll, root } from '../support/requirements.js';
import { chunkFile } from '../support/trees.js';
import { demoTree } from './demo-tree.js';
import { mountImages, readAt } from './image-session.js';

const chunkmount = new TestChunkmount();

beforeAll(() => requireAll(root, build, fuseDevice));

afterAll(() => chunkmount.close());

/**
 * Puts a FIFO in a file's place, at which somebody waits to write. Gives whether it has been opened since, which is what lets
 * that one go on.
 */
async function fifoAt(file: string): Promise<(withinMs?: number) => Promise<boolean>> {
  fs.rmSync(file);
  await run('mkfifo', [file]);
  const writer = spawn('dd', [`of=${file}`, 'if=/dev/null', 'status=none'], { stdio: 'ignore' });
  onTestFinished(() => void writer.kill('SIGKILL'));
  const ended = new Promise<true>((resolve) => writer.once('exit', () => resolve(true)));
  // Where it sleeps in the kernel: fs/pipe.c.
  await expect
    .poll(() => fs.readFileSync(`/proc/${writer.pid}/wchan`, 'latin1'), { timeout: 30_000 })
    .toContain('wait_for_partner');
  return (withinMs = 500) => Promise.race([ended, sleep(withinMs, false, { ref: false })]);
}

const FILES = ['manifest.json', 'vda.xxh64', 'mail01.xml', 'nvram.fd', chunkFile('vda', 13)];

describe('what is no plain file in a tree is refused without being opened:', () => {
  it.each(FILES)('%s, by verify and restore', async (name) => {
    const { root: tree, beside } = demoTree();
    const wasOpened = await fifoAt(path.join(tree, name));
    const verified = await chunkmount.run(['verify', tree]);
    expect(verified).toMatchObject({ exitCode: 4 });
    expect(verified.stdout).toMatch(new RegExp(`${name} is no plain file`));
    await chunkmount.run(['restore', tree, `--to=${beside('vda.img')}`]);
    expect(await wasOpened()).toBe(false);
  });

  it.each([{ options: [] }, { options: ['--no-verify'] }])(
    'a chunk, by image-mount $options',
    async ({ options }) => {
      const { root: tree, chunk } = demoTree();
      const wasOpened = await fifoAt(chunk(13));
      const { image } = await mountImages(chunkmount, tree, ...options);
      await expect(readAt(image('vda'), 0, 64 * 4096)).rejects.toThrow(/Input\/output error/);
      expect(await wasOpened()).toBe(false);
    },
  );

  it('(an open would be seen)', async () => {
    const { chunk } = demoTree();
    const wasOpened = await fifoAt(chunk(13));
    fs.closeSync(fs.openSync(chunk(13), fs.constants.O_RDONLY | fs.constants.O_NONBLOCK));
    expect(await wasOpened(30_000)).toBe(true);
  });
});
