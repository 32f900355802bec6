import * as fs from 'node:fs';
import * as path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { interrupted, run, timed } from './run.mjs';

export const CLI = path.resolve(import.meta.dirname, '../../../dist/cli.js');
const NAME = 'bench';
/** Of the daemon's own report: asking `chunkmount list` again and again would take a processor from the scan. */
const POLL_MS = 100;
/** Sessions whose snapshots are in the same second would wait for the clock; see the manifest's time in the design. */
const BETWEEN_SESSIONS_MS = 2_000;

/**
 * `chunkmount run` around `rsync -a` to `copy`. Returns the seconds from command to prompt, the bytes that were read of the disks
 * to know their chunks, and whether a tracker knew what had changed.
 */
export async function runAround(options, copy, env) {
  const rsync = ['sh', '-c', 'rsync -a --delete "$CHUNKMOUNT_TREE/" "$1/"', 'sh', copy];
  const command = [process.execPath, CLI, 'run', ...options, '--debug', '--', ...rsync];
  // What is read is only told to people.
  const { seconds, result } = await timed(() => run('sh', ['-c', '"$@" 2>&1', 'sh', ...command], { env }));
  const told = /(\d+) bytes read of the disks/.exec(result);
  if (told === null) throw new Error(`nothing was told of what was read:\n${result}`);
  return { seconds, bytes: Number(told[1]), tracked: result.includes('knows what changed') };
}

/** A state directory of chunkmount's, and with it the memory of earlier sessions. One session at a time. */
export class Chunkmount {
  /** When the last session of any began. */
  static #last = 0;

  constructor(directory, { image, transport }) {
    this.directory = directory;
    this.image = image;
    this.transport = transport;
    this.env = {
      CHUNKMOUNT_STATEDIR: path.join(directory, 'state'),
      CHUNKMOUNT_BACKUPDIR: path.join(directory, 'mnt'),
    };
  }

  #chunkmount(args, options = {}) {
    return run(process.execPath, [CLI, ...args], { ...options, env: this.env });
  }

  /** Mounts the image. `seconds`: from command to mounted tree. */
  async open() {
    await sleep(Math.max(0, Chunkmount.#last + BETWEEN_SESSIONS_MS - Date.now()), undefined, {
      signal: interrupted.signal,
    });
    // Every session shall read everything: the image would often be known not to have changed.
    const source = [`--image=${this.image}`, `--name=${NAME}`, `--transport=${this.transport}`, '--track=none'];
    const { seconds, result } = await timed(() => this.#chunkmount(source));
    Chunkmount.#last = Date.now();
    const tree = result.trim();
    if (!fs.existsSync(path.join(tree, 'manifest.json'))) throw new Error(`${tree} is no tree`);
    return { tree, chunks: path.join(tree, 'disk0'), seconds };
  }

  /** What `runAround` returns. */
  async backUp(copy, track) {
    await sleep(Math.max(0, Chunkmount.#last + BETWEEN_SESSIONS_MS - Date.now()), undefined, {
      signal: interrupted.signal,
    });
    const source = [`--image=${this.image}`, `--name=${NAME}`, `--transport=${this.transport}`, `--track=${track}`];
    const result = await runAround(source, copy, this.env);
    Chunkmount.#last = Date.now();
    return result;
  }

  get #session() {
    return path.join(this.env.CHUNKMOUNT_STATEDIR, 'sessions', NAME);
  }

  /** Waits until all chunks are hashed. Returns the seconds that the scan took, as the daemon measured them. */
  async scanned() {
    for (;;) {
      const status = JSON.parse(readIfThere(path.join(this.#session, 'status.json')) || '{}');
      if (status.scanSeconds !== undefined) return status.scanSeconds;
      this.peakMemory();
      await sleep(POLL_MS, undefined, { signal: interrupted.signal });
    }
  }

  /** The most memory that the daemon has had so far, in bytes. Throws if there is none. */
  peakMemory() {
    const session = this.#session;
    for (const pid of fs.readdirSync('/proc').filter((name) => /^[0-9]+$/.test(name))) {
      const argv = readIfThere(`/proc/${pid}/cmdline`).split('\0');
      if (argv.at(-2) !== session) continue;
      const match = /^VmHWM:\s+([0-9]+) kB$/m.exec(readIfThere(`/proc/${pid}/status`));
      if (match !== null) return Number(match[1]) * 1024;
    }
    throw new Error(`the daemon of ${session} is not there`);
  }

  async close() {
    await this.#chunkmount(['cleanup', `--name=${NAME}`]);
  }

  /** Ends whatever is left, also when we were told to end. */
  async end() {
    const cleanup = () => this.#chunkmount(['cleanup', '--all'], { evenSo: true });
    // The first one also fails when it only tells that the tree was not whole.
    await cleanup().catch(cleanup);
  }

  /** Forgets all sessions: the next one is the first. */
  forget() {
    fs.rmSync(this.env.CHUNKMOUNT_STATEDIR, { recursive: true, force: true });
  }
}

function readIfThere(file) {
  try {
    return fs.readFileSync(file, 'utf8');
  } catch {
    return '';
  }
}
