import { spawn } from 'node:child_process';
import { constants } from 'node:os';
import { performance } from 'node:perf_hooks';

/** Aborted by the first signal that ends us: what is being measured is then of no use. */
export const interrupted = new AbortController();

/** Resolves with the exit code once the program and all that writes to its pipes have ended. */
function ended(child) {
  return new Promise((resolve, reject) => {
    child.on('error', (error) => {
      if (child.pid === undefined) reject(error);
    });
    child.on('close', (code, signal) => resolve(code ?? signal));
  });
}

/**
 * Runs a program to its end, and returns its standard output. Throws with what it said unless it exits with 0. When we are
 * to end it gets a SIGTERM, and time to clean up; with `evenSo` it runs nevertheless.
 */
export async function run(program, args, { env = {}, evenSo = false, discard = false } = {}) {
  const { signal } = interrupted;
  if (!evenSo) signal.throwIfAborted();
  const stdio = ['ignore', discard ? 'ignore' : 'pipe', 'pipe'];
  // In a session of its own, where Ctrl-C reaches it through us alone.
  const child = spawn(program, args, { env: { ...process.env, LC_ALL: 'C', ...env }, stdio, detached: true });
  const output = ['', ''];
  child.stdout?.setEncoding('utf8').on('data', (text) => (output[0] += text));
  child.stderr.setEncoding('utf8').on('data', (text) => (output[1] += text));
  const end = () => process.kill(-child.pid, 'SIGTERM');
  if (!evenSo) signal.addEventListener('abort', end);
  try {
    const code = await ended(child);
    if (!evenSo) signal.throwIfAborted();
    if (code !== 0) throw new Error(`${program} ${args.join(' ')}: ended with ${code}\n${output[1]}`);
    return output[0];
  } finally {
    signal.removeEventListener('abort', end);
  }
}

/** Seconds that a program takes whose output nobody wants. */
export async function secondsOf(program, args, options = {}) {
  const start = performance.now();
  await run(program, args, { discard: true, ...options });
  return (performance.now() - start) / 1000;
}

/** Seconds that `work` takes, and what it returns. */
export async function timed(work) {
  const start = performance.now();
  const result = await work();
  return { seconds: (performance.now() - start) / 1000, result };
}

/** Whether a program of that name is on PATH. */
export async function isOnPath(program) {
  try {
    await run('sh', ['-c', 'command -v -- "$0"', program]);
    return true;
  } catch {
    interrupted.signal.throwIfAborted();
    return false;
  }
}

/** Tells people what is being measured. */
export function progress(text) {
  process.stderr.write(`scripts/bench: ${text}\n`);
}

/** Runs `main` with the command line's arguments; a signal interrupts it. Sets the exit code. */
export async function runToEnd(main) {
  let received = 0;
  for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP']) {
    process.on(signal, () => {
      received ||= constants.signals[signal];
      interrupted.abort(new Error(`ended by ${signal}`));
    });
  }
  try {
    await main(process.argv.slice(2));
  } catch (error) {
    process.stderr.write(`scripts/bench: ${error.message}\n`);
    process.exitCode = received === 0 ? 1 : 128 + received;
  }
}
