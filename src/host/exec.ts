import { type ChildProcess, type ChildProcessWithoutNullStreams, spawn } from 'node:child_process';
import { subscribe, unsubscribe } from 'node:diagnostics_channel';
import { accessSync, closeSync, constants, openSync } from 'node:fs';
import type { Socket } from 'node:net';
import type { Options } from 'execa';
import { failed, messageOf, systemCode } from '../errors.js';
import { check } from './command-error.js';
import { type Politeness, politeCommand } from './politeness.js';

export interface RunOptions {
  /** After this many milliseconds the program is ended and an error thrown. */
  timeoutMs?: number;
  signal?: AbortSignal | undefined;
  input?: string;
  /** Exit codes that are answers rather than failures. 0 always is one. */
  accept?: readonly number[];
  /** Descriptors of ours that the program sees as 3, 4, …; it inherits no other. */
  descriptors?: readonly number[];
  cwd?: string;
  env?: Readonly<Record<string, string>>;
  /**
   * Cut off half-way it would leave the host in a state that nothing can work with: `signal` does not end it. After `timeoutMs` it
   * gets SIGTERM, which it may put off; it is waited for, and never killed.
   */
  toItsEnd?: boolean;
  /** What messages call it, when it is the program's subcommand that matters; else the program's name. */
  called?: string;
}

export interface RunResult {
  readonly exitCode: number;
  readonly stdout: string;
  readonly stderr: string;
}

const DEFAULT_TIMEOUT_MS = 60_000;
/** The longest that setTimeout can wait: 24 days. It takes anything longer for nothing. */
const MAX_TIMEOUT_MS = 2 ** 31 - 1;

/** Takes 0.1 s to load, which a command that starts no program need not wait for. */
const loadExeca = () => import('execa');

/**
 * Our own working directory, whatever became of it: who ends a session from inside its tree has none any more when the tree is gone. By
 * its name nothing could be started there.
 */
const OUR_DIRECTORY = '/proc/self/cwd';

/** Who was started by root in root's home, as somebody else, may not go there; nor does any name that begins there lead anywhere. */
function directoryForPrograms(): string {
  try {
    accessSync(OUR_DIRECTORY, constants.X_OK);
    return OUR_DIRECTORY;
  } catch {
    return '/';
  }
}

function options(given: RunOptions) {
  return {
    cwd: given.cwd ?? directoryForPrograms(),
    env: { ...given.env, LC_ALL: 'C' },
    stdin: given.input === undefined ? 'ignore' : 'pipe',
    reject: false,
    stripFinalNewline: false,
    timeout: Math.min(given.timeoutMs ?? DEFAULT_TIMEOUT_MS, MAX_TIMEOUT_MS),
    forceKillAfterDelay: given.toItsEnd === true ? false : 2_000,
    // A Ctrl-C on the terminal is for us to handle: virsh would abort its block job.
    detached: true,
    ...(given.input === undefined ? {} : { input: given.input }),
    ...(given.signal === undefined || given.toItsEnd === true ? {} : { cancelSignal: given.signal }),
  } satisfies Options;
}

/**
 * Ends what is left of a program's process group once the program itself has been ended: it may hold our pipes, and then we
 * would wait for it.
 */
function endGroupOf(child: ChildProcess, given: Pick<RunOptions, 'timeoutMs' | 'signal' | 'toItsEnd'>): void {
  if (given.toItsEnd === true) return;
  const deadline = performance.now() + (given.timeoutMs ?? DEFAULT_TIMEOUT_MS);
  child.once('exit', (_code, signal) => {
    const ended = signal !== null || given.signal?.aborted === true || performance.now() >= deadline;
    if (!ended || child.pid === undefined) return;
    try {
      process.kill(-child.pid, 'SIGKILL');
    } catch {
      // Nobody is left.
    }
  });
}

/**
 * Starts a program by `begin`, which calls execa. Without descriptors for its pipes Node gives a child that has none, and tells the
 * reason by an event `error` later; execa throws before it listens, so that nobody would hear the event, and it would end us.
 */
function beginning<T>(program: string, args: readonly string[], begin: () => T): T {
  let child: ChildProcess | undefined;
  const see = (message: unknown) => {
    child = (message as { process: ChildProcess }).process;
  };
  subscribe('child_process', see);
  try {
    return begin();
  } catch (error) {
    if (child === undefined || child.stdio !== undefined) throw error;
    child.on('error', () => {});
    check(program, args, { code: 'EMFILE', isCanceled: false, timedOut: false });
    throw error;
  } finally {
    unsubscribe('child_process', see);
  }
}

/**
 * Runs a program to its end, never through a shell, with LC_ALL=C. Throws CommandError when it is missing, fails,
 * or takes longer than `timeoutMs` (60 s unless told).
 */
export async function run(
  program: string,
  args: readonly string[],
  given: RunOptions = {},
): Promise<RunResult> {
  const { stdin, ...others } = options(given);
  // execa's types know descriptors 0 to 2 only; it passes on any.
  const stdio = [stdin, 'pipe', 'pipe', ...(given.descriptors ?? [])] as NonNullable<Options['stdio']>;
  const { execa } = await loadExeca();
  const child = beginning(program, args, () => execa(program, args, { ...others, stdio }));
  endGroupOf(child, given);
  const result = await child;
  const exitCode = check(program, args, result, given);
  return { exitCode, stdout: String(result.stdout ?? ''), stderr: String(result.stderr ?? '') };
}

/** The descriptors that become a program's standard input and output. */
export interface FilterEnds {
  readonly stdin: number;
  readonly stdout: number;
}

/**
 * Like `run`, for a program that reads one descriptor of ours and writes another. They become the program's: here they are closed,
 * whatever happens, so that both of its ends notice when it has ended.
 */
export async function runFilter(
  program: string,
  args: readonly string[],
  ends: FilterEnds,
  given: Pick<RunOptions, 'timeoutMs' | 'signal'>,
): Promise<void> {
  const { execa } = await loadExeca();
  const stdio = [ends.stdin, ends.stdout, 'pipe'] as unknown as NonNullable<Options['stdio']>;
  const { stdin: _, ...others } = options(given);
  const start = () => {
    try {
      return beginning(program, args, () => execa(program, args, { ...others, stdio }));
    } finally {
      closeSync(ends.stdin);
      closeSync(ends.stdout);
    }
  };
  const child = start();
  endGroupOf(child, given);
  check(program, args, await child);
}

/** Like `run`, but yields stdout line by line, for output too large to hold as one string. */
export async function* runLines(
  program: string,
  args: readonly string[],
  given: RunOptions = {},
): AsyncGenerator<string, void, undefined> {
  const { stdin, ...others } = options(given);
  const stdio = [stdin, 'pipe', 'pipe', ...(given.descriptors ?? [])] as NonNullable<Options['stdio']>;
  const { execa } = await loadExeca();
  const buffer = { stdout: false, stderr: true };
  const child = beginning(program, args, () => execa(program, args, { ...others, stdio, buffer }));
  endGroupOf(child, given);
  let rest = '';
  child.stdout?.setEncoding('utf8');
  for await (const piece of child.stdout ?? []) {
    const lines = (rest + String(piece)).split('\n');
    rest = lines.pop() ?? '';
    yield* lines;
  }
  if (rest !== '') yield rest;
  check(program, args, await child, given);
}

/**
 * Runs a program of which nothing but the exit code matters. Undefined if there is none after `timeoutMs`: it is killed then, and not
 * waited for, because what hangs in the kernel may not end for long.
 */
export function exitCodeWithin(
  program: string,
  args: readonly string[],
  timeoutMs: number,
): Promise<number | undefined> {
  const child = spawn(program, args, { cwd: '/', detached: true, stdio: 'ignore' });
  child.unref();
  return new Promise((resolve) => {
    const timer = setTimeout(() => {
      child.kill('SIGKILL');
      resolve(undefined);
    }, timeoutMs);
    const end = (code?: number | null) => {
      clearTimeout(timer);
      resolve(code ?? undefined);
    };
    child.once('exit', end);
    child.once('error', () => end());
  });
}

/**
 * Starts a program to talk to: we write to its stdin and read what it says. Neither it nor its pipes keep us from ending; its stdin is
 * closed then. One that is not there has an event `error`. Throws when there is no room for one more process or for its pipes.
 */
export function spawnToTalkTo(
  program: string,
  args: readonly string[],
  env: Readonly<Record<string, string>>,
): ChildProcessWithoutNullStreams {
  const child = spawn(program, args, {
    cwd: '/',
    detached: true,
    env: { ...process.env, ...env, LC_ALL: 'C' },
    stdio: 'pipe',
  });
  child.unref();
  // Node gives pipes as sockets, which its types do not say; and none where it has no descriptors left, for which there is an event, too.
  const pipes = [child.stdin, child.stdout, child.stderr] as unknown as (Socket | undefined)[];
  for (const pipe of pipes) {
    if (pipe === undefined) {
      child.on('error', () => {});
      throw failed(`${program} could not be started: too many files are open`);
    }
    pipe.unref();
  }
  return child;
}

export interface DetachedOptions {
  /** stdout and stderr are appended to this file. */
  logFile: string;
  /** Descriptors of ours that the process sees as 3, 4, …; it inherits no other. */
  descriptors?: readonly number[];
  env?: Readonly<Record<string, string>>;
  /** How much it gives way to others, with all its threads and all that it starts. */
  politeness?: Politeness | undefined;
}

function spawnInBackground(
  program: string,
  args: readonly string[],
  given: DetachedOptions,
  channel: readonly 'ipc'[],
): ChildProcess {
  const log = openSync(given.logFile, 'a', 0o600);
  try {
    const [first, ...others] = politeCommand([program, ...args], given.politeness);
    return spawn(first, others, {
      cwd: '/',
      detached: true,
      env: { ...process.env, ...given.env, LC_ALL: 'C' },
      stdio: ['ignore', log, log, ...(given.descriptors ?? []), ...channel],
    });
  } finally {
    closeSync(log);
  }
}

/** The child's process number once it runs. Throws CommandError when it cannot be started. */
async function started(program: string, args: readonly string[], child: ChildProcess): Promise<number> {
  try {
    await new Promise<void>((resolve, reject) => {
      child.once('spawn', resolve);
      child.once('error', reject);
    });
  } catch (error) {
    check(program, args, {
      code: systemCode(error),
      isCanceled: false,
      timedOut: false,
      originalMessage: messageOf(error),
    });
    throw error;
  }
  if (child.pid === undefined) throw failed(`${program} could not be started`);
  return child.pid;
}

/**
 * Starts a process in its own session that outlives us, with `/` as its working directory. Returns its process number.
 * Throws CommandError when it cannot be started.
 */
export async function spawnDetached(
  program: string,
  args: readonly string[],
  given: DetachedOptions,
): Promise<number> {
  const child = spawnInBackground(program, args, given, []);
  const pid = await started(program, args, child);
  child.unref();
  return pid;
}

/**
 * Node's options of a program that stays for hours: fewer helper threads. None of V8's own, such as those for the size of its
 * heap: with another set of them V8 does not take Node's compiled code, and each thread takes a third longer to begin.
 */
const SMALL_PROCESS = ['--v8-pool-size=1'];

/** A Node program of ours that was started, and a channel to it. While the channel is open it keeps us from ending. */
export interface StartedDaemon {
  readonly pid: number;
  /** Tells it something. What one that has ended does not get is not an error: `answer` says so. */
  tell(message: object): void;
  /** The first message it sends us; rejects when it ends before, or takes longer than the time limit. */
  answer(timeoutMs: number): Promise<unknown>;
  /** Closes the channel: it does not keep us any more. */
  letGo(): void;
  kill(): void;
}

/**
 * Like `spawnDetached`, for another Node program of ours: it can be told what to do, and tell us, over a channel that it should close
 * then, that it is ready. When we end before, its channel closes.
 */
export async function spawnDaemon(
  script: string,
  args: readonly string[],
  given: DetachedOptions,
): Promise<StartedDaemon> {
  const all = [...SMALL_PROCESS, script, ...args];
  const child = spawnInBackground(process.execPath, all, given, ['ipc']);
  const first = new Promise<unknown>((resolve, reject) => {
    child.once('message', resolve);
    child.once('exit', (code, signal) =>
      reject(failed(`the daemon ended at once (${signal ?? `exit code ${code}`})`)),
    );
  });
  first.catch(() => {}); // Whoever asks for it gets the error; nobody may be asking yet.
  const pid = await started(process.execPath, all, child);
  child.unref();
  return {
    pid,
    tell: (message) => child.send(message, () => {}),
    answer: (timeoutMs) => withTimeout(first, timeoutMs, `the daemon ${script} did not get ready in time`),
    letGo: () => {
      if (child.connected) child.disconnect();
    },
    kill: () => child.kill('SIGKILL'),
  };
}

async function withTimeout<T>(promise: Promise<T>, timeoutMs: number, sentence: string): Promise<T> {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(failed(sentence)), timeoutMs);
  });
  try {
    return await Promise.race([promise, late]);
  } finally {
    clearTimeout(timer);
  }
}

export interface ForegroundResult {
  readonly exitCode: number | undefined;
  readonly signal: NodeJS.Signals | undefined;
}

/**
 * Runs the user's own command with our stdin, stdout and stderr until it ends; `signal` sends it SIGTERM, `kill` SIGKILL. Never
 * throws for how the command ended; throws CommandError when it cannot be started.
 */
export async function runForeground(
  program: string,
  args: readonly string[],
  given: { env: Readonly<Record<string, string>>; signal?: AbortSignal; kill?: AbortSignal },
): Promise<ForegroundResult> {
  const { execa } = await loadExeca();
  const options = {
    cwd: OUR_DIRECTORY,
    env: { ...given.env },
    stdio: 'inherit',
    reject: false,
    forceKillAfterDelay: 10_000,
    ...(given.signal === undefined ? {} : { cancelSignal: given.signal }),
  } satisfies Options;
  const child = beginning(program, args, () => execa(program, args, options));
  given.kill?.addEventListener('abort', () => child.kill('SIGKILL'), { once: true });
  const result = await child;
  if (result.exitCode === undefined && result.signal === undefined) check(program, args, result);
  return { exitCode: result.exitCode, signal: result.signal as NodeJS.Signals | undefined };
}
