import * as fs from 'node:fs';
import { beforeAll, describe, expect, it } from 'vitest';
import { CommandError } from '../../src/host/command-error.js';
import { run, runForeground, runLines, spawnDetached } from '../../src/host/exec.js';

describe('without descriptors for its pipes', () => {
  // A limit may be a thousand times higher. Run here, so that what that loads at the first time has been.
  beforeAll(() => run('prlimit', [`--pid=${process.pid}`, '--nofile=1024:']));

  /** What `begin` fails with while all of our descriptors but `left` are used up. */
  async function short(left: number, begin: () => Promise<unknown>): Promise<CommandError> {
    const used: number[] = [];
    try {
      for (;;) used.push(fs.openSync('/dev/null', 'r'));
    } catch {
      for (const fd of used.splice(0, left)) fs.closeSync(fd);
    }
    try {
      const error = await begin().catch((reason: unknown) => reason);
      expect(error).toBeInstanceOf(CommandError);
      return error as CommandError;
    } finally {
      for (const fd of used) fs.closeSync(fd);
    }
  }

  async function lines(): Promise<void> {
    for await (const _ of runLines('true', []));
  }

  const logFile = '/dev/null';

  // An event `error` that nobody hears would end the test itself.
  it.each<[string, () => Promise<unknown>]>([
    ['run', () => run('true', [])],
    ['runLines', lines],
    ['runForeground', () => runForeground('true', [], { env: {} })],
    ['spawnDetached', () => spawnDetached('true', [], { logFile })],
  ])('%s says that too many files are open, and what to do', async (_name, begin) => {
    const error = await short(1, begin);
    expect(error.message).toBe('true cannot be started: too many files are open (EMFILE)');
    expect(error.hint).toMatch(/^raise the limit of open files: ulimit -n/);
    expect((await run('echo', ['again'])).stdout).toBe('again\n');
  });
});
