import * as fs from 'node:fs';
import { execa } from 'execa';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { CLI, TestChunkmount } from '../support/chunkmount.js';
import { build, program, requireAll } from '../support/requirements.js';

const chunkmount = new TestChunkmount();

beforeAll(() => requireAll(build, program('losetup', 'mount'), program('filefrag', 'e2fsprogs')));
afterAll(() => chunkmount.close());

it.each([[['list', '--json']], [['list']], [['doctor', '--json']]])(
  'a result that cannot be written is a failure: %j',
  async (args) => {
    fs.mkdirSync(`${chunkmount.stateDirectory}/sessions/some`, { recursive: true });
    const command = ['-c', 'exec "$@" >/dev/full', 'sh', process.execPath, CLI, ...args];
    const { exitCode, stderr } = await execa('sh', command, { env: chunkmount.env, reject: false });
    fs.rmSync(`${chunkmount.stateDirectory}/sessions/some`, { recursive: true });
    expect(stderr).toContain('the result cannot be written: ENOSPC');
    expect(exitCode).toBe(1);
  },
);

describe("with cron's PATH", () => {
  it.each(['/usr/bin:/bin', undefined])('programs of the system are found: %s', async (PATH) => {
    const { stdout } = await execa(process.execPath, [CLI, 'doctor', '--json'], {
      env: { ...chunkmount.env, ...(PATH === undefined ? {} : { PATH }) },
      extendEnv: false,
      reject: false,
      stdin: 'ignore',
    });
    const { checks } = JSON.parse(stdout) as { checks: { name: string; state: string }[] };
    const missing = checks.filter(({ state }) => state !== 'ok').map(({ name }) => name);
    expect(missing).not.toContain('losetup');
    expect(missing).not.toContain('filefrag');
    expect(checks.map(({ name }) => name)).toContain('losetup');
  });
});
