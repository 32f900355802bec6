import * as fs from 'node:fs';
import { execa } from 'execa';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { findProcesses } from '../../src/host/process-list.js';
import { CLI, TestChunkmount } from '../support/chunkmount.js';
import { noise } from '../support/images.js';
import { fuseDevice, program, requireAll, root } from '../support/requirements.js';
import { eventually } from './expectations.js';

/** What a person sees: the same, made to fit the terminal, and what is wrong in red. */
describe('list on a terminal', () => {
  const chunkmount = new TestChunkmount();
  const image = chunkmount.path('disk.raw');

  beforeAll(async () => {
    await requireAll(root, fuseDevice, program('script', 'bsdutils'), program('stty', 'coreutils'));
    fs.writeFileSync(image, noise(300_000, 5));
    await chunkmount.succeed(`--image=${image}`, '--name=demo');
  });

  afterAll(() => chunkmount.close());

  async function shown(columns: number, env: Readonly<Record<string, string>> = {}): Promise<string[]> {
    const command = `stty columns ${columns}; '${process.execPath}' '${CLI}' list`;
    const { stdout } = await execa('script', ['--quiet', '--return', '--command', command, '/dev/null'], {
      env: { ...chunkmount.env, TERM: 'xterm', NO_COLOR: '', ...env },
      stdin: 'ignore',
    });
    return stdout.replaceAll('\r', '').trimEnd().split('\n');
  }

  it('is a table where it fits, and a block where not', async () => {
    const [head, line, ...more] = await shown(200);
    expect(head).toMatch(/^NAME +STATE +MOUNTPOINT .* FREE$/);
    expect(line).toMatch(/^demo +mounted +\//);
    expect(more).toEqual([]);
    const narrow = await shown(40);
    expect(narrow[0]).toBe('demo: mounted');
    expect(narrow).toContain(`  mountpoint  ${chunkmount.tree('demo')}`);
    expect(narrow).toHaveLength(9);
  });

  it('shows in red what something has to be done about, unless colours are not wanted', async () => {
    const [daemon] = findProcesses((argv) => argv.at(-1)?.endsWith('/sessions/demo') === true);
    process.kill(daemon!.pid, 'SIGKILL');
    await eventually(async () => (await shown(200))[1]?.includes('dead') === true);
    expect((await shown(200))[1]).toContain('\x1b[1;31mdead\x1b[0m ');
    expect((await shown(200, { NO_COLOR: '1' }))[1]).toMatch(/^demo +dead +\//);
    expect((await chunkmount.succeed('list')).split('\n')[1]).toMatch(/^demo +dead +\//);
  });
});
