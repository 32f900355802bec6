import * as fs from 'node:fs';
import * as os from 'node:os';
import * as path from 'node:path';
import { afterAll, describe, expect, it } from 'vitest';
import { CommandError } from '../../src/host/command-error.js';
import { run, runForeground, runLines, spawnDaemon, spawnDetached } from '../../src/host/exec.js';
import { identify, isAlive, signalProcess, waitForEnd } from '../../src/host/process-identity.js';
import { findProcesses } from '../../src/host/process-list.js';
import { isOpen } from '../support/descriptors.js';

const directory = fs.mkdtempSync(path.join(fs.realpathSync(os.tmpdir()), 'chunkmount-exec-'));
afterAll(() => fs.rmSync(directory, { recursive: true }));

const shell = (script: string, ...args: readonly string[]) => ['-c', script, 'sh', ...args] as const;

async function failure(promise: Promise<unknown>): Promise<CommandError> {
  try {
    await promise;
  } catch (error) {
    expect(error).toBeInstanceOf(CommandError);
    return error as CommandError;
  }
  throw new Error('it succeeded');
}

/**
 * Descriptors of a running process. Only the lower ones: Node closes what it inherited itself up to there, and whoever runs
 * the tests may have left it more.
 */
function descriptorsOf(pid: number): number[] {
  const all = fs.readdirSync(`/proc/${pid}/fd`).map(Number);
  return all.filter((fd) => fd < 16).sort((x, y) => x - y);
}

/** The process number that a script wrote to `file`. */
function pidIn(file: string): Promise<number> {
  return eventually(() => {
    const text = fs.existsSync(file) ? fs.readFileSync(file, 'utf8') : '';
    return text.endsWith('\n') ? Number(text) : undefined;
  });
}

async function eventually<T>(look: () => T | undefined): Promise<T> {
  const deadline = Date.now() + 60_000;
  for (;;) {
    const found = look();
    if (found !== undefined) return found;
    if (Date.now() > deadline) throw new Error('it did not happen');
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}

/**
 * The error of a program that takes too long, which `attempt` runs with a time limit. It must have made `begun` by then: how long that
 * takes depends on the machine, so it gets twice the time if it has not.
 */
async function errorOfLate(begun: string, attempt: (timeoutMs: number) => Promise<unknown>): Promise<Error> {
  for (let timeoutMs = 200; ; timeoutMs *= 2) {
    const error = await failure(attempt(timeoutMs));
    if (fs.existsSync(begun)) return error;
  }
}

describe('run', () => {
  it('gives what the program wrote', async () => {
    const result = await run('sh', shell('printf "out\\n"; printf err >&2'));
    expect(result).toEqual({ exitCode: 0, stdout: 'out\n', stderr: 'err' });
  });

  it('passes arguments on as they are, through no shell', async () => {
    const args = ['a b', '$(id)', '*', '', '"', "'", '\n', 'ü', '--'];
    const { stdout } = await run('printf', ['%s|', ...args]);
    expect(stdout).toBe(args.map((arg) => `${arg}|`).join(''));
  });

  it('sets LC_ALL=C, whatever the caller or we have', async () => {
    const { stdout } = await run('sh', shell('echo $LC_ALL $MINE'), { env: { LC_ALL: 'de_DE', MINE: 'x' } });
    expect(stdout).toBe('C x\n');
  });

  it('gives input, or none', async () => {
    expect((await run('cat', [], { input: 'hello' })).stdout).toBe('hello');
    expect((await run('cat', [])).stdout).toBe('');
  });

  it('runs where it is told', async () => {
    expect((await run('pwd', [], { cwd: directory })).stdout).toBe(`${directory}\n`);
  });

  it('names a program that is missing, and its package', async () => {
    const error = await failure(run('lvcreate', ['-s'], { env: { PATH: directory } }));
    expect([error.message, error.hint]).toEqual([
      'lvcreate is not installed',
      'install it: apt-get install lvm2',
    ]);
    const other = await failure(run('no-such-program', []));
    expect([other.message, other.hint]).toEqual(['no-such-program is not installed', undefined]);
  });

  it('keeps reason, arguments and stderr of a failure', async () => {
    const error = await failure(
      run('sh', shell('echo "error: no such disk" >&2; echo "error: give up" >&2; exit 3')),
    );
    expect(error.message).toBe('sh failed: no such disk; give up');
    expect(error).toMatchObject({
      exitCode: 3,
      stderr: 'error: no such disk\nerror: give up',
      kind: 'failed',
    });
    expect(error.command.slice(0, 2)).toEqual(['sh', '-c']);
  });

  it('tells the exit code of a program that says nothing', async () => {
    expect((await failure(run('sh', shell('exit 7')))).message).toBe('sh failed with exit code 7');
  });

  it('takes the exit codes that are answers', async () => {
    expect((await run('sh', shell('exit 7'), { accept: [7, 9] })).exitCode).toBe(7);
    expect((await run('true', [], { accept: [7] })).exitCode).toBe(0);
    await failure(run('sh', shell('exit 8'), { accept: [7, 9] }));
  });

  it('tells the signal that ended a program', async () => {
    expect((await failure(run('sh', shell('kill -SEGV $$')))).message).toBe('sh was ended by SIGSEGV');
  });

  it('ends a program that takes too long', async () => {
    const began = performance.now();
    const file = path.join(directory, 'waiting');
    const script = shell('echo waiting >&2; : >"$1"; sleep 60', file);
    const error = await errorOfLate(file, (timeoutMs) => run('sh', script, { timeoutMs }));
    expect(error.message).toBe('sh took too long and was ended: waiting');
    expect(performance.now() - began).toBeLessThan(15_000);
  });

  it('ends what the program itself has started, too', async () => {
    const mark = path.join(directory, 'grandchild');
    const script = shell('trap "exit 5" TERM; sh -c ": >\\"\\$0\\"; sleep 60" "$1" & wait', mark);
    await errorOfLate(mark, (timeoutMs) => run('sh', script, { timeoutMs }));
    await eventually(() => (findProcesses((argv) => argv[3] === mark).length === 0 ? true : undefined));
  });

  it('ends one that does not want to', async () => {
    const script = 'trap "" TERM; echo $$ > "$1"; while :; do sleep 0.1; done';
    const file = path.join(directory, 'stubborn');
    const error = await errorOfLate(file, (timeoutMs) => run('sh', shell(script, file), { timeoutMs }));
    expect(error.message).toBe('sh took too long and was ended');
    expect(identify(Number(fs.readFileSync(file, 'utf8')))).toBeUndefined();
  });

  it('waits for one that must come to its end', async () => {
    const file = path.join(directory, 'whole');
    const script = shell('trap "" TERM; : >"$1"; sleep 3; echo done >"$1"', file);
    const error = await errorOfLate(file, (timeoutMs) => {
      const signal = AbortSignal.timeout(timeoutMs / 2);
      return run('sh', script, { timeoutMs, signal, toItsEnd: true });
    });
    expect(error.message).toBe('sh took too long and was ended');
    expect(fs.readFileSync(file, 'utf8')).toBe('done\n');
  });

  it('and for what that has started, after its own end', async () => {
    const file = path.join(directory, 'left to work');
    const script = 'trap "exit 5" TERM; (trap "" TERM; : >"$1"; sleep 2; echo done >"$1") & wait';
    await errorOfLate(file, (timeoutMs) => run('sh', shell(script, file), { timeoutMs, toItsEnd: true }));
    expect(await eventually(() => fs.readFileSync(file, 'utf8') || undefined)).toBe('done\n');
  });

  it('waits longer than Node can count, too', async () => {
    const { stdout } = await run('sh', shell('sleep 0.2; echo waited'), { timeoutMs: 2 ** 31 });
    expect(stdout).toBe('waited\n');
  });

  it('stops when told to, also before it began', async () => {
    const abort = new AbortController();
    const running = failure(run('sleep', ['60'], { signal: abort.signal }));
    setTimeout(() => abort.abort(), 100);
    expect((await running).message).toBe('sleep was stopped');
    expect((await failure(run('sleep', ['60'], { signal: abort.signal }))).message).toBe('sleep was stopped');
  });

  it('hands over these descriptors and no others', async () => {
    const file = path.join(directory, 'descriptor');
    fs.writeFileSync(file, 'handed over');
    const fds = [fs.openSync(file, 'r'), fs.openSync('/dev/null', 'r')];
    const other = fs.openSync(file, 'r');
    for (const [descriptors, expected] of [
      [fds, [0, 1, 2, 3, 4]],
      [[], [0, 1, 2]],
    ] as const) {
      const pidFile = path.join(directory, `pid ${descriptors.length}`);
      const abort = new AbortController();
      const script = 'echo $$ > "$1"; sleep 60';
      const running = failure(run('sh', shell(script, pidFile), { descriptors, signal: abort.signal }));
      expect(descriptorsOf(await pidIn(pidFile))).toEqual(expected);
      abort.abort();
      await running;
    }
    expect((await run('sh', shell('cat <&3'), { descriptors: fds })).stdout).toBe('handed over');
    for (const fd of [...fds, other]) fs.closeSync(fd);
  });

  it('is not ended by a Ctrl-C that is meant for us', async () => {
    const { stdout } = await run('sh', shell('cut -d" " -f5 /proc/$$/stat; echo $$'));
    const [group, pid] = stdout.trim().split('\n');
    expect(group).toBe(pid);
  });
});

describe('runLines', () => {
  async function all(lines: AsyncIterable<string>): Promise<string[]> {
    const found: string[] = [];
    for await (const each of lines) found.push(each);
    return found;
  }

  it('gives the lines, and what follows the last newline', async () => {
    expect(await all(runLines('printf', ['a\\n\\nb']))).toEqual(['a', '', 'b']);
    expect(await all(runLines('printf', ['a\\n']))).toEqual(['a']);
    expect(await all(runLines('true', []))).toEqual([]);
  });

  it('puts characters together that arrive in pieces', async () => {
    const script = 'printf "\\303"; sleep 0.2; printf "\\274\\n"';
    expect(await all(runLines('sh', shell(script)))).toEqual(['ü']);
  });

  it('gives more than a string should hold, one by one', async () => {
    let count = 0;
    for await (const each of runLines('seq', ['1000000'])) {
      count++;
      if (Number(each) !== count) throw new Error(`${each} is not ${count}`);
    }
    expect(count).toBe(1_000_000);
  });

  it('throws at the end if the program failed', async () => {
    const found: string[] = [];
    const error = await failure(
      (async () => {
        for await (const each of runLines('sh', shell('echo one; echo "bad image" >&2; exit 1')))
          found.push(each);
      })(),
    );
    expect(found).toEqual(['one']);
    expect(error.message).toBe('sh failed: bad image');
  });

  it('throws for a program that is missing', async () => {
    expect((await failure(all(runLines('no-such-program', [])))).message).toBe(
      'no-such-program is not installed',
    );
  });

  it('ends a program that takes too long', async () => {
    const error = await failure(all(runLines('sh', shell('echo one; sleep 60'), { timeoutMs: 300 })));
    expect(error.message).toBe('sh took too long and was ended');
  });

  it('leaves no program behind when the reader has had enough', async () => {
    const mark = path.join(directory, 'enough');
    for await (const each of runLines('yes', [mark])) {
      expect(each).toBe(mark);
      break;
    }
    await eventually(() => (findProcesses((argv) => argv.includes(mark)).length === 0 ? true : undefined));
  });
});

describe('spawnDetached', () => {
  it('starts a process of its own session, in the root directory, with its output in the log', async () => {
    const logFile = path.join(directory, 'detached.log');
    fs.writeFileSync(logFile, 'before\n');
    const script = 'pwd; cut -d" " -f6 /proc/$$/stat; echo $MINE $LC_ALL >&2; sleep 60';
    const fd = fs.openSync('/dev/null', 'r');
    const given = { logFile, env: { MINE: 'x' }, descriptors: [fd] };
    const pid = await spawnDetached('sh', shell(script), given);
    fs.closeSync(fd);
    const identity = identify(pid)!;
    try {
      const text = await eventually(() => /^before\n.* C\n$/s.exec(fs.readFileSync(logFile, 'utf8'))?.[0]);
      expect(text).toBe(`before\n/\n${pid}\nx C\n`);
      expect(descriptorsOf(pid)).toEqual([0, 1, 2, 3]);
      expect(isAlive(identity)).toBe(true);
    } finally {
      // The whole session: the shell and its sleep.
      process.kill(-pid, 'SIGKILL');
    }
    expect(await waitForEnd(identity, 60_000)).toBe(true);
  });

  it('throws for a program that is missing, and keeps nothing open', async () => {
    const logFile = path.join(directory, 'missing.log');
    expect((await failure(spawnDetached('no-such-program', [], { logFile }))).message).toBe(
      'no-such-program is not installed',
    );
    expect(isOpen(logFile)).toBe(false);
  });
});

describe('spawnDaemon', () => {
  const logFile = path.join(directory, 'daemon.log');

  function daemon(code: string) {
    const script = path.join(directory, 'daemon.mjs');
    fs.writeFileSync(script, code);
    return spawnDaemon(script, ['an argument'], { logFile });
  }

  it('gives the first message', async () => {
    const { pid, answer } = await daemon(
      'process.send({ argv: process.argv[2] }, () => process.disconnect());',
    );
    expect(await answer(30_000)).toEqual({ argv: 'an argument' });
    const identity = identify(pid);
    if (identity !== undefined) expect(await waitForEnd(identity, 60_000)).toBe(true);
  });

  it('says that the daemon ended without one', async () => {
    await expect((await daemon('process.exit(3)')).answer(30_000)).rejects.toThrow(
      'the daemon ended at once (exit code 3)',
    );
    const killed = await daemon('process.kill(process.pid, "SIGKILL"); setInterval(() => {}, 1000)');
    await expect(killed.answer(30_000)).rejects.toThrow('the daemon ended at once (SIGKILL)');
    // What it cannot be told any more is nobody's error.
    killed.tell({});
    await expect(killed.answer(30_000)).rejects.toThrow('SIGKILL');
  });

  it('does not wait for ever', async () => {
    const { pid, answer } = await daemon('process.on("message", () => {})');
    await expect(answer(500)).rejects.toThrow('did not get ready in time');
    signalProcess(identify(pid)!, 'SIGKILL');
  });
});

describe('a daemon that was started', () => {
  it('is told things in order, and notices when it is let go; it can be killed', async () => {
    const script = path.join(directory, 'told.mjs');
    fs.writeFileSync(
      script,
      `const told = [];
       process.on('message', (message) => { told.push(message.n); if (told.length === 2) process.send(told); });
       process.on('disconnect', () => process.exit());`,
    );
    const daemon = await spawnDaemon(script, [], { logFile: path.join(directory, 'told.log') });
    daemon.tell({ n: 1 });
    daemon.tell({ n: 2 });
    expect(await daemon.answer(30_000)).toEqual([1, 2]);
    daemon.letGo();
    daemon.letGo();
    const identity = identify(daemon.pid);
    if (identity !== undefined) expect(await waitForEnd(identity, 60_000)).toBe(true);
    const other = await spawnDaemon(script, [], { logFile: path.join(directory, 'told.log') });
    other.kill();
    await expect(other.answer(30_000)).rejects.toThrow('SIGKILL');
    other.letGo();
  });
});

describe('runForeground', () => {
  it('tells how the command ended', async () => {
    expect(await runForeground('sh', shell('exit 7'), { env: {} })).toEqual({
      exitCode: 7,
      signal: undefined,
    });
    expect(await runForeground('sh', shell('kill -HUP $$'), { env: {} })).toEqual({
      exitCode: undefined,
      signal: 'SIGHUP',
    });
  });

  it('gives it its environment beside ours', async () => {
    const file = path.join(directory, 'environment');
    const env = { CHUNKMOUNT_TREE: '/a b' };
    await runForeground('sh', shell('echo "$CHUNKMOUNT_TREE $HOME" > "$1"', file), { env });
    expect(fs.readFileSync(file, 'utf8')).toBe(`/a b ${process.env.HOME ?? ''}\n`);
  });

  it('sends SIGTERM when told to, and lets the command end its own way', async () => {
    const file = path.join(directory, 'ready');
    const abort = new AbortController();
    const script = 'trap "exit 5" TERM; echo > "$1"; while :; do sleep 0.05; done';
    const running = runForeground('sh', shell(script, file), { env: {}, signal: abort.signal });
    await eventually(() => (fs.existsSync(file) ? true : undefined));
    abort.abort();
    expect(await running).toEqual({ exitCode: 5, signal: undefined });
  });

  it('throws for a command that is missing', async () => {
    const error = await failure(runForeground('no-such-program', [], { env: {} }));
    expect(error.message).toBe('no-such-program is not installed');
  });
});
