import { spawn } from 'node:child_process';
import { once } from 'node:events';
import * as fs from 'node:fs';
import * as path from 'node:path';
import { setTimeout } from 'node:timers/promises';
import { afterAll, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { inNewSession } from '../../src/backup/new-session.js';
import type { BackupSettings } from '../../src/backup/settings.js';
import { silentReporter } from '../../src/report/reporter.js';
import { StateDirectory } from '../../src/session/state-directory.js';
import { temporaryDirectory } from '../support/images.js';
import { replaceInFs } from '../support/replaced-fs.js';
import { program, requireAll } from '../support/requirements.js';

const directory = temporaryDirectory();
const state = new StateDirectory(directory);
const lockFile = path.join(state.locks, '.max-backups.flock');

beforeAll(() => requireAll(program('flock', 'util-linux')));
beforeEach(() => fs.mkdirSync(state.locks, { recursive: true }));
afterAll(() => fs.rmSync(directory, { recursive: true }));

function begin(name: string, maxBackups: number): Promise<string> {
  const settings = { state, maxBackups, keepLock: false, commitTimeoutMs: undefined } as BackupSettings;
  const request = {
    source: { kind: 'images', name, images: [] },
    settings,
    reporter: silentReporter,
  } as const;
  return inNewSession({ ...request, command: 'test' }, { work: async ({ id }) => id, stays: false });
}

/** Does `work` while another process counts sessions, and then begins one called `other`. */
async function whileOtherBegins<T>(work: () => Promise<T>): Promise<T> {
  const begins = 'echo counting; read line; mkdir -p "$1"';
  const args = [lockFile, 'sh', '-c', begins, 'sh', state.session('other')];
  const other = spawn('flock', args, { stdio: ['pipe', 'pipe', 'inherit'] });
  const exit = once(other, 'exit');
  await once(other.stdout, 'data');
  try {
    return await work();
  } finally {
    other.stdin.end('go on\n');
    await exit;
  }
}

describe('--max-backups', () => {
  it('counts a session that another command is beginning', async () => {
    const { begun } = await whileOtherBegins(async () => {
      const begun = Promise.allSettled([begin('mail01', 1)]);
      await setTimeout(1000);
      return { begun };
    });
    const [{ reason }] = (await begun) as [PromiseRejectedResult];
    expect(reason).toMatchObject({ message: '1 backup is running already: other' });
    expect(state.sessions()).toEqual(['other']);
    fs.rmdirSync(state.session('other'));
    expect(await begin('mail01', 1)).toEqual(expect.any(String));
    expect(state.sessions()).toEqual([]);
  });

  it('keeps nobody waiting who was not given it', async () => {
    expect(await whileOtherBegins(() => begin('mail01', 0))).toEqual(expect.any(String));
    fs.rmdirSync(state.session('other'));
  });
});

it('a session whose journal cannot be made is none', async () => {
  const { openSync } = fs;
  const broken = (file: fs.PathLike, ...others: [fs.OpenMode, (fs.Mode | null)?]) => {
    if (String(file) !== state.journal('mail01')) return openSync(file, ...others);
    throw Object.assign(new Error('EIO: i/o error, open'), { code: 'EIO' });
  };
  const openAgain = replaceInFs('openSync', broken);
  await expect(begin('mail01', 0)).rejects.toThrow('EIO');
  openAgain();
  expect(state.sessions()).toEqual([]);
  expect(await begin('mail01', 0)).toEqual(expect.any(String));
});
