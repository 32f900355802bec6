import * as fs from 'node:fs';
import * as path from 'node:path';
import { Worker } from 'node:worker_threads';
import { createHasher } from '../chunks/chunk-hash.js';
import { STOP } from '../content-index/rows.js';
import { ChunkmountError, messageOf } from '../errors.js';
import { serveKernel } from '../fuse/kernel/server.js';
import type { Server } from '../fuse/transport.js';
import { CONFIG_NAME, type DaemonConfig, type DaemonMessage } from './daemon-config.js';
import { ServedTree } from './served-tree.js';
import { writeStatus } from './status.js';

/** The open /dev/fuse that the mount command hands over. */
const FUSE_DESCRIPTOR = 3;

/** Two keep two cores busy. */
const SCANNERS = 2;

const STATUS_INTERVAL_MS = 1_000;
/** A session that dies loses at most this much of what it found out. */
const SAVE_INTERVAL_MS = 60_000;

/** Serves one session until its mount is gone. Runs as a process of its own, started by the mount command. */
class Daemon {
  readonly #served: ServedTree;
  #server: Server | undefined;
  #savedResolved = 0;
  #lastStatus = '';

  constructor(
    private readonly config: DaemonConfig,
    served: ServedTree,
  ) {
    this.#served = served;
  }

  async serve(): Promise<void> {
    this.#server = await startServer(this.config, this.#served);
    await this.#server.connected;
    this.#writeStatus('serving');
    report({ kind: 'ready', warnings: this.#served.warnings });
    const scanners = this.#startScanners();
    const timers = [
      setInterval(() => this.#writeStatus('serving'), STATUS_INTERVAL_MS),
      setInterval(() => this.#saveIfChanged(), SAVE_INTERVAL_MS),
    ];
    void scanners.then(() => this.#saveIfChanged());
    await this.#server.ended;
    for (const timer of timers) clearInterval(timer);
    this.#stopScanners();
    await scanners;
    this.finish({ seen: false });
  }

  /** The last thing a daemon does while it still can. `seen`: somebody may see the tree until we are gone. */
  finish({ seen }: { seen: boolean }): void {
    try {
      if (seen) this.#served.save();
      else this.#served.settle();
      this.#writeStatus('ended');
    } catch (error) {
      this.#writeStatus('failed', `the index could not be saved: ${messageOf(error)}`);
    }
  }

  async #startScanners(): Promise<void> {
    const url = new URL('./scan-worker.js', import.meta.url);
    const scanners = Array.from(
      { length: SCANNERS },
      () => new Worker(url, { workerData: this.#served.tree }),
    );
    const ends = scanners.map(
      (worker) =>
        new Promise<void>((resolve) => {
          // A scanner that fails leaves its chunks to whoever asks for them.
          worker.on('error', (error) => console.error(`scanner: ${messageOf(error)}`));
          worker.on('exit', () => resolve());
        }),
    );
    await Promise.all(ends);
  }

  #stopScanners(): void {
    for (const { rows } of this.#served.tree.disks) Atomics.store(rows.control, STOP, 1);
  }

  #saveIfChanged(): void {
    const { resolved } = this.#served.scanState();
    if (resolved === this.#savedResolved) return;
    try {
      this.#served.save();
      this.#savedResolved = resolved;
    } catch (error) {
      console.error(`the index could not be saved: ${messageOf(error)}`);
    }
  }

  #writeStatus(state: 'serving' | 'ended' | 'failed', error?: string): void {
    const scan = this.#served.scanState();
    const counters = this.#server?.counters() ?? {
      requests: 0,
      stats: 0,
      reads: 0,
      bytesRead: 0,
      ioErrors: 0,
    };
    const facts = { state, scan, counters, ...(error === undefined ? {} : { error }) };
    const text = JSON.stringify(facts);
    if (text === this.#lastStatus) return;
    this.#lastStatus = text;
    try {
      writeStatus(this.config.sessionDirectory, { ...facts, at: new Date().toISOString() });
    } catch (problem) {
      console.error(`the status could not be written: ${messageOf(problem)}`);
    }
  }
}

async function startServer(config: DaemonConfig, served: ServedTree): Promise<Server> {
  const { tree } = served;
  if (config.transport === 'kernel') return serveKernel(FUSE_DESCRIPTOR, tree, config.directIo);
  const { serveNative } = await import('../fuse/native/server.js');
  const { mountpoint, source, directIo, allowOther } = config;
  return serveNative({ tree, mountpoint, source, directIo, allowOther });
}

/** Tells the mount command, if it still is there, and lets go of it. */
function report(message: DaemonMessage): void {
  process.removeAllListeners('disconnect');
  if (process.connected) process.send?.(message, undefined, undefined, () => process.disconnect());
}

/**
 * Ends the process although threads sit in /dev/fuse: exit(2) would wait for them for ever. The kernel closes the
 * descriptor, so that a mount that is still there answers ENOTCONN.
 */
function die(): never {
  process.kill(process.pid, 'SIGKILL');
  throw new Error('unreachable');
}

async function main(sessionDirectory: string): Promise<void> {
  // Nobody would ever mount what we serve.
  process.once('disconnect', die);
  let daemon: Daemon | undefined;
  for (const signal of ['SIGTERM', 'SIGINT', 'SIGHUP'] as const) {
    process.on(signal, () => {
      daemon?.finish({ seen: true });
      die();
    });
  }
  try {
    const text = fs.readFileSync(path.join(sessionDirectory, CONFIG_NAME), 'utf8');
    const config = JSON.parse(text) as DaemonConfig;
    daemon = new Daemon(config, new ServedTree(config, await createHasher()));
    await daemon.serve();
  } catch (error) {
    console.error(error);
    const hint = error instanceof ChunkmountError ? error.hint : undefined;
    report({ kind: 'failed', message: messageOf(error), hint });
    daemon?.finish({ seen: true });
    setTimeout(die, 100);
    return;
  }
  process.exitCode = 0;
}

const [, , directory] = process.argv;
if (directory === undefined) throw new Error('the daemon is started by chunkmount itself');
await main(directory);
