import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import * as fs from 'node:fs';
import * as os from 'node:os';
import * as path from 'node:path';
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest';
import { usersOf } from '../../src/host/path-users.js';
import {
  bootId,
  identify,
  isAlive,
  ownIdentity,
  signalProcess,
  waitForEnd,
} from '../../src/host/process-identity.js';
import { findProcesses } from '../../src/host/process-list.js';
import { replaceInFs } from '../support/replaced-fs.js';
import { program, requireAll } from '../support/requirements.js';

const directory = fs.mkdtempSync(path.join(fs.realpathSync(os.tmpdir()), 'chunkmount-process-'));
const children: ChildProcess[] = [];

beforeAll(() => requireAll(program('python3')));
afterEach(async () => {
  for (const child of children.splice(0)) {
    if (child.exitCode !== null || child.signalCode !== null) continue;
    const exit = once(child, 'exit');
    child.kill('SIGKILL');
    await exit;
  }
});
afterAll(() => fs.rmSync(directory, { recursive: true }));

async function start(file: string, args: readonly string[], options = {}): Promise<ChildProcess> {
  const child = spawn(file, args, { stdio: ['ignore', 'pipe', 'ignore'], ...options });
  children.push(child);
  await once(child, 'spawn');
  return child;
}

/** First line that a child prints. */
async function line(child: ChildProcess): Promise<string> {
  const [data] = (await once(child.stdout!, 'data')) as [Buffer];
  return data.toString().split('\n')[0]!;
}

async function eventually(check: () => boolean): Promise<void> {
  const deadline = Date.now() + 60_000;
  while (!check()) {
    if (Date.now() > deadline) throw new Error('it did not happen');
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}

function stateOf(pid: number): string {
  return /^State:\t(\w)/m.exec(fs.readFileSync(`/proc/${pid}/status`, 'latin1'))![1]!;
}

describe('a process', () => {
  it('is alive until it ends', async () => {
    const child = await start('sleep', ['60']);
    const identity = identify(child.pid!)!;
    expect(identity).toMatchObject({ pid: child.pid, bootId: bootId() });
    expect(isAlive(identity)).toBe(true);
    expect(await waitForEnd(identity, 50)).toBe(false);
    child.kill();
    expect(await waitForEnd(identity, 60_000)).toBe(true);
    expect(identify(child.pid!)).toBeUndefined();
  });

  it('is not the one that has its number now', () => {
    const own = ownIdentity();
    expect(isAlive(own)).toBe(true);
    expect(isAlive({ ...own, startTime: own.startTime - 1 })).toBe(false);
    expect(isAlive({ ...own, bootId: '00000000-0000-0000-0000-000000000000' })).toBe(false);
  });

  it('started later has a later start time', async () => {
    const child = await start('sleep', ['60']);
    expect(identify(child.pid!)!.startTime).toBeGreaterThan(ownIdentity().startTime);
  });

  it('that nobody waited for is gone all the same', async () => {
    // The shell becomes a program that does not wait for its children.
    const parent = await start('sh', ['-c', 'sleep 60 & echo $!; exec sleep 60']);
    const pid = Number(await line(parent));
    await eventually(() => fs.readFileSync(`/proc/${parent.pid}/comm`, 'latin1') === 'sleep\n');
    const identity = identify(pid)!;
    process.kill(pid, 'SIGKILL');
    await eventually(() => stateOf(pid) === 'Z');
    expect(isAlive(identity)).toBe(false);
    expect(identify(pid)).toBeUndefined();
  });

  // Its other threads still hold its files, /dev/fuse among them.
  it('whose first thread has ended is alive', async () => {
    const code = `
import ctypes, threading, time
threading.Thread(target=time.sleep, args=(60,)).start()
print("started", flush=True)
ctypes.CDLL(None).pthread_exit(None)`;
    const child = await start('python3', ['-c', code]);
    await line(child);
    await eventually(() => stateOf(child.pid!) === 'Z');
    const identity = identify(child.pid!)!;
    expect(isAlive(identity)).toBe(true);
    signalProcess(identity, 'SIGKILL');
    expect(await waitForEnd(identity, 60_000)).toBe(true);
  });

  it.each(['a) Z 1 (b', '(', ') R', 'with space'])('may call itself "%s"', async (name) => {
    const file = path.join(directory, name);
    fs.symlinkSync('/bin/sleep', file);
    const child = await start(file, ['60']);
    const identity = identify(child.pid!);
    expect(identity?.startTime).toBeGreaterThan(ownIdentity().startTime);
    expect(isAlive(identity!)).toBe(true);
  });
});

it('a process of which nothing can be found out is alive', () => {
  const nobody = { ...ownIdentity(), startTime: 1 };
  expect(isAlive(nobody)).toBe(false);
  const readAgain = replaceInFs('readFileSync', () => {
    throw Object.assign(new Error('EMFILE: too many open files'), { code: 'EMFILE' });
  });
  const alive = isAlive(nobody);
  readAgain();
  expect(alive).toBe(true);
});

describe('signalProcess', () => {
  it('sends the signal', async () => {
    const child = await start('sleep', ['60']);
    const exit = once(child, 'exit');
    signalProcess(identify(child.pid!)!, 'SIGTERM');
    expect(await exit).toEqual([null, 'SIGTERM']);
  });

  it('spares a process that only has the number', async () => {
    const child = await start('sleep', ['60']);
    const identity = identify(child.pid!)!;
    signalProcess({ ...identity, startTime: identity.startTime - 1 }, 'SIGKILL');
    signalProcess({ ...identity, bootId: 'another' }, 'SIGKILL');
    expect(await waitForEnd(identity, 200)).toBe(false);
  });

  it('does nothing to one that is gone', async () => {
    const child = await start('true', []);
    const identity = { ...ownIdentity(), pid: child.pid! };
    await once(child, 'exit');
    expect(() => signalProcess(identity, 'SIGTERM')).not.toThrow();
  });
});

describe('findProcesses', () => {
  it('finds by arguments, exactly as given', async () => {
    const mark = path.join(directory, 'a mark');
    // Becomes nothing else, and starts nothing: a process that it forks has its arguments for a moment.
    const child = await start('sh', ['-c', 'read -r _; exit', mark, ''], {
      stdio: ['pipe', 'ignore', 'ignore'],
    });
    const found = () => findProcesses((argv) => argv.includes(mark));
    await eventually(() => found().length === 1);
    expect(found()).toEqual([identify(child.pid!)]);
    const whole = findProcesses((argv) => argv.join('|') === `sh|-c|read -r _; exit|${mark}|`);
    expect(whole).toHaveLength(1);
  });
});

describe('usersOf', () => {
  it('names who keeps a directory busy, and nobody else', async () => {
    const inside = path.join(directory, 'busy');
    const beside = path.join(directory, 'busy2');
    for (const each of [inside, beside]) fs.mkdirSync(each);
    const cwd = await start('sleep', ['60'], { cwd: inside });
    await start('sleep', ['61'], { cwd: beside });
    fs.writeFileSync(path.join(inside, 'file'), '');
    const open = await start('sh', ['-c', 'exec sleep 62 < "$1"', 'sh', path.join(inside, 'file')]);
    const pids = () => usersOf(inside).map(({ pid }) => pid);
    await eventually(() => pids().length >= 2);
    expect(pids().sort()).toEqual([cwd.pid, open.pid].sort());
    await eventually(() => usersOf(inside).every(({ command }) => command === 'sleep'));
  });

  it.skipIf(process.getuid!() !== 0)('and who has it as its root', async () => {
    const inside = path.join(directory, 'root');
    fs.mkdirSync(inside);
    const code = 'import os, sys, time\nos.chroot(sys.argv[1])\nprint("there", flush=True)\ntime.sleep(60)';
    const child = await start('python3', ['-c', code, inside], { cwd: '/' });
    await line(child);
    expect(usersOf(inside).map(({ pid }) => pid)).toEqual([child.pid]);
  });
});
