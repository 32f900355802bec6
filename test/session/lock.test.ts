import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import * as fs from 'node:fs';
import * as os from 'node:os';
import * as path from 'node:path';
import { setTimeout } from 'node:timers/promises';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it, vi } from 'vitest';
import { ChunkmountError, exitCodeOf } from '../../src/errors.js';
import { ownIdentity } from '../../src/host/process-identity.js';
import { exclusively, Lock, type LockRecord, listLocks } from '../../src/session/lock.js';
import { programFirst } from '../support/dumps.js';
import { build, program, requireAll } from '../support/requirements.js';

const directory = fs.mkdtempSync(path.join(os.tmpdir(), 'chunkmount-lock-'));
const locks = path.join(directory, 'locks');
const recordFile = path.join(locks, 'mail01.json');
const children: ChildProcess[] = [];

beforeAll(() => requireAll(build, program('flock', 'util-linux')));
beforeEach(() => fs.rmSync(locks, { recursive: true, force: true }));
afterEach(() => {
  for (const child of children.splice(0)) child.kill('SIGKILL');
});
afterAll(() => fs.rmSync(directory, { recursive: true }));

const acquire = (options: { evenIfKept?: boolean } = {}) =>
  Lock.acquire(locks, 'mail01', { command: 'test', ...options });

async function refusal(options: { evenIfKept?: boolean } = {}): Promise<ChunkmountError> {
  try {
    (await acquire(options)).release();
  } catch (error) {
    expect(error).toBeInstanceOf(ChunkmountError);
    expect(exitCodeOf(error)).toBe(3);
    return error as ChunkmountError;
  }
  throw new Error('the lock could be had');
}

/** Another process that holds the lock. */
async function holder(...more: string[]): Promise<ChildProcess> {
  const script = path.join(import.meta.dirname, 'lock-holder.mjs');
  const child = spawn(process.execPath, [script, locks, 'mail01', ...more], {
    stdio: ['pipe', 'pipe', 'inherit'],
  });
  children.push(child);
  const [said] = (await Promise.race([once(child.stdout!, 'data'), once(child, 'exit')])) as [unknown];
  expect(String(said)).toBe('held\n');
  return child;
}

async function end(child: ChildProcess, how: () => void): Promise<void> {
  const exit = once(child, 'exit');
  how();
  await exit;
}

function writeRecord(record: unknown): void {
  fs.mkdirSync(locks, { recursive: true });
  fs.writeFileSync(recordFile, typeof record === 'string' ? record : JSON.stringify(record));
}

const recordOf = (changes: Partial<LockRecord>): LockRecord => ({
  owner: ownIdentity(),
  command: 'other',
  since: '2024-05-31T22:15:00Z',
  kept: false,
  ...changes,
});

describe('a lock', () => {
  it('is had again after its release, and leaves no record', async () => {
    (await acquire()).release();
    expect(fs.existsSync(recordFile)).toBe(false);
    (await acquire()).release();
  });

  it('says who holds it while it is held', async () => {
    const lock = await acquire();
    const record = listLocks(locks).get('mail01');
    expect(record).toMatchObject({ command: 'test', kept: false, owner: ownIdentity() });
    lock.release();
    expect(listLocks(locks).size).toBe(0);
  });

  it('is had once, in one process too', async () => {
    const lock = await acquire();
    expect((await refusal()).message).toMatch(
      /^mail01 is locked: test \(process \d+, since .*\) is working on it$/,
    );
    lock.release();
    (await acquire()).release();
  });

  it('of one VM says nothing about another', async () => {
    const lock = await acquire();
    const other = await Lock.acquire(locks, 'devsrv', { command: 'test' });
    expect([...listLocks(locks).keys()].sort()).toEqual(['devsrv', 'mail01']);
    other.release();
    lock.release();
  });

  it('whose record cannot be written is not had, and nobody is kept from it', async () => {
    const temporary = path.join(locks, `.mail01.json.${process.pid}.tmp`);
    fs.mkdirSync(temporary, { recursive: true });
    await expect(acquire()).rejects.toThrow('EISDIR');
    fs.rmdirSync(temporary);
    (await acquire()).release();
  });

  it('goes to one of many who want it at once', async () => {
    const results = await Promise.allSettled(Array.from({ length: 8 }, () => acquire()));
    const won = results.filter((result) => result.status === 'fulfilled');
    expect(won).toHaveLength(1);
    won[0]!.value.release();
  });
});

describe('between processes', () => {
  it('a lock keeps the other out until it is released', async () => {
    const other = await holder();
    const error = await refusal({ evenIfKept: true });
    expect(error.message).toContain(`holder (process ${other.pid}, since `);
    expect(error.hint).toBe('wait until it has ended');
    await end(other, () => other.stdin!.end());
    (await acquire()).release();
  });

  it('a lock that is held briefly is waited for', async () => {
    const other = await holder('brief');
    let had = false;
    const waiting = acquire().then((lock) => {
      had = true;
      return lock;
    });
    await setTimeout(500);
    expect(had).toBe(false);
    await end(other, () => other.stdin!.end());
    (await waiting).release();
    expect(listLocks(locks).size).toBe(0);
  });

  /** Has `work` done with a `flock` first on PATH which says that the lock is taken until the program was asked so often. */
  async function takenUntilAsked<T>(times: number, work: (asked: () => number) => Promise<T>): Promise<T> {
    const { PATH } = process.env;
    const log = path.join(directory, 'asked');
    fs.writeFileSync(log, '');
    const script = `echo >>'${log}'; [ $(wc -l <'${log}') -lt ${times} ] && exit 75; PATH='${PATH}' exec flock "$@"`;
    process.env.PATH = programFirst(path.join(directory, 'bin'), 'flock', script);
    try {
      return await work(() => fs.statSync(log).size);
    } finally {
      process.env.PATH = PATH;
    }
  }

  it('a lock that was given back since it was asked for, and nobody says any more who had it', async () => {
    await takenUntilAsked(2, async () => (await acquire()).release());
    expect(listLocks(locks).size).toBe(0);
  });

  it('a lock that is held briefly by an owner who is slow to say so', async () => {
    const other = await holder('brief');
    fs.renameSync(recordFile, `${recordFile}.later`);
    await takenUntilAsked(2, async (asked) => {
      const waiting = acquire();
      await vi.waitFor(() => expect(asked()).toBe(2), { timeout: 30_000 });
      fs.renameSync(`${recordFile}.later`, recordFile);
      await end(other, () => other.stdin!.end());
      (await waiting).release();
    });
  });

  it('a lock whose owner has not said yet who it is', async () => {
    const other = await holder();
    fs.renameSync(recordFile, `${recordFile}.later`);
    const error = refusal();
    // It has asked for the lock in the meantime, and was told that it is taken.
    await setTimeout(60);
    fs.renameSync(`${recordFile}.later`, recordFile);
    expect((await error).message).toContain(`holder (process ${other.pid}, since `);
    fs.rmSync(recordFile);
    expect((await refusal()).message).toBe('mail01 is locked: another command is working on it');
  });

  it.each(['SIGKILL', 'SIGTERM'] as const)('a lock falls when its owner ends by %s', async (signal) => {
    const other = await holder();
    await end(other, () => other.kill(signal));
    expect(fs.existsSync(recordFile)).toBe(true);
    (await acquire()).release();
    expect(fs.existsSync(recordFile)).toBe(false);
  });

  it('a lock is not inherited by what its owner starts', async () => {
    const lock = await acquire();
    // It outlives the lock; were the descriptor in it, the lock would still be held.
    const child = spawn('sleep', ['60'], { stdio: 'ignore' });
    children.push(child);
    await once(child, 'spawn');
    lock.release();
    (await acquire()).release();
  });
});

describe('a kept lock', () => {
  it('outlives its owner', async () => {
    const other = await holder('keep');
    await end(other, () => other.stdin!.end());
    const error = await refusal();
    expect(error.message).toMatch(/^mail01 is locked: holder kept the lock on /);
    expect(error.hint).toBe('release it: chunkmount unlock --vm=mail01');
  });

  it('lets cleanup work, and stays kept after it', async () => {
    (await acquire()).release({ keep: true });
    const cleanup = await acquire({ evenIfKept: true });
    expect(listLocks(locks).get('mail01')?.kept).toBe(true);
    cleanup.release();
    expect((await refusal()).message).toContain('kept the lock');
  });

  it('lets cleanup work while its owner has not ended yet', async () => {
    await holder();
    const record = JSON.parse(fs.readFileSync(recordFile, 'utf8')) as LockRecord;
    fs.rmSync(path.join(locks, 'mail01.flock'));
    writeRecord({ ...record, kept: true });
    (await acquire({ evenIfKept: true })).release();
  });

  it('is gone after unlock, which knows whether there was one', async () => {
    (await acquire()).release({ keep: true });
    expect((await acquire({ evenIfKept: true })).releaseKept()).toBe(true);
    expect((await acquire({ evenIfKept: true })).releaseKept()).toBe(false);
    (await acquire()).release();
  });
});

describe('a record that was left behind', () => {
  it('by an earlier boot is stale, although its process number is in use', async () => {
    writeRecord(recordOf({ owner: { ...ownIdentity(), pid: process.ppid, bootId: 'another boot' } }));
    (await acquire()).release();
  });

  it('by a process whose number another one has now is stale', async () => {
    writeRecord(recordOf({ owner: { ...ownIdentity(), pid: process.ppid, startTime: 1 } }));
    (await acquire()).release();
  });

  it('by a process that lives keeps others out, even without the lock itself', async () => {
    const other = await holder();
    const record = fs.readFileSync(recordFile, 'utf8');
    fs.rmSync(path.join(locks, 'mail01.flock'));
    writeRecord(record);
    expect((await refusal()).message).toContain(`holder (process ${other.pid}) is working on it`);
  });

  it.each([
    ['nothing', ''],
    ['half a record', '{"owner":{"pid":1'],
    ['null', 'null'],
    ['no record', '{}'],
    ['another shape', '{"owner":7,"kept":"yes"}'],
    ['a list', '[]'],
  ])('that holds %s is no lock', async (_, text) => {
    writeRecord(text);
    expect(listLocks(locks).size).toBe(0);
    (await acquire()).release();
  });
});

describe('exclusively', () => {
  it('does nothing while another does, and lets go of what it opened', async () => {
    const bin = fs.mkdtempSync(path.join(directory, 'bin-'));
    // As flock(1) when its time is over, which would be half a minute.
    fs.writeFileSync(path.join(bin, 'flock'), '#!/bin/sh\nexit 75\n', { mode: 0o755 });
    vi.stubEnv('PATH', `${bin}:${process.env.PATH}`);
    const work = vi.fn();
    await expect(exclusively(locks, 'shared', work)).rejects.toThrow('shared is locked: another command');
    expect(work).not.toHaveBeenCalled();
    vi.unstubAllEnvs();
    expect(await exclusively(locks, 'shared', () => 7)).toBe(7);
    (await Lock.acquire(locks, 'shared', { command: 'test' })).release();
  });
});

describe('listLocks', () => {
  it('does not take for a lock what a killed process left of its record', () => {
    writeRecord('');
    fs.writeFileSync(path.join(locks, '.mail01.json.7.tmp'), JSON.stringify(recordOf({})));
    expect(listLocks(locks).size).toBe(0);
  });

  it('of a directory that is not there is empty', () => {
    expect(listLocks(path.join(directory, 'nowhere')).size).toBe(0);
  });
});
