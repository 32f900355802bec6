import * as fs from 'node:fs';
import * as path from 'node:path';
import { createHasher } from '../chunks/chunk-hash.js';
import { LOST, STOP } from '../content-index/rows.js';
import { messageOf } from '../errors.js';
import type { ChunkTree } from '../fuse/chunk-tree.js';
import { type DaemonEnd, type DaemonWork, FUSE_DESCRIPTOR, runDaemon } from '../fuse/daemon-process.js';
import { KernelThreads } from '../fuse/kernel/server.js';
import { type Server, sumCounters, type TransportKind } from '../fuse/transport.js';
import { scriptUrl } from '../host/program-files.js';
import { CONFIG_NAME, type DaemonConfig } from './daemon-config.js';
import { Scanners } from './scanners.js';
import { ServedTree } from './served-tree.js';
import { SnapshotWatch } from './snapshot-watch.js';
import { type DaemonStatus, writeStatus } from './status.js';

const FACTORY = scriptUrl('fuse/chunk-filesystem.js').href;

const STATUS_INTERVAL_MS = 1_000;
/** A session that dies loses at most this much of what it found out. */
const SAVE_INTERVAL_MS = 60_000;

/** Serves one session until its mount is gone. Runs as a process of its own, started by the mount command. */
class Daemon implements DaemonWork {
  #served: ServedTree | undefined;
  #server: Server | undefined;
  #config: DaemonConfig | undefined;
  readonly #hasher = createHasher();
  readonly #scanners = new Scanners();
  #threads: KernelThreads | undefined;
  readonly #timers: NodeJS.Timeout[] = [];
  #savedResolved = 0;
  #scanSeconds: number | undefined;
  #watch: SnapshotWatch | undefined;
  #lastStatus = '';

  constructor(private readonly sessionDirectory: string) {}

  prepare(transport: TransportKind): void {
    if (transport === 'kernel') this.#threads = new KernelThreads(FUSE_DESCRIPTOR, FACTORY);
  }

  async start(): Promise<Server> {
    const text = fs.readFileSync(path.join(this.sessionDirectory, CONFIG_NAME), 'utf8');
    const config = JSON.parse(text) as DaemonConfig;
    this.#config = config;
    this.#served = new ServedTree(config, await this.#hasher);
    const { tree } = this.#served;
    this.#server = this.#threads?.serve(tree, config.directIo) ?? (await serveNatively(config, tree));
    this.#scanners.open(tree, config.bandwidth);
    return this.#server;
  }

  ready(): readonly string[] {
    const served = this.#served!;
    this.#writeStatus(served, 'serving');
    const started = performance.now();
    this.#scanners.begin();
    void this.#scanners.ended.then(() => {
      const { chunks, resolved, unreadable } = served.scanState();
      // One that was stopped has no end.
      if (resolved + unreadable === chunks) this.#scanSeconds = (performance.now() - started) / 1000;
      this.#saveIfChanged(served);
    });
    const lose = () => {
      for (const { rows } of served.tree.disks) Atomics.store(rows.control, LOST, 1);
    };
    this.#watch = new SnapshotWatch(this.sessionDirectory, this.#config!.snapshotAutoextend, lose);
    this.#timers.push(
      setInterval(() => this.#writeStatus(served, 'serving'), STATUS_INTERVAL_MS),
      setInterval(() => served.syncChangeLogs(), STATUS_INTERVAL_MS),
      setInterval(() => this.#saveIfChanged(served), SAVE_INTERVAL_MS),
    );
    return served.warnings;
  }

  async finish({ unmounted, hurried }: DaemonEnd): Promise<void> {
    const served = this.#served;
    if (served === undefined) return;
    for (const timer of this.#timers) clearInterval(timer);
    this.#watch?.end();
    if (unmounted) this.#removeMountpoint();
    for (const { rows } of served.tree.disks) Atomics.store(rows.control, STOP, 1);
    // In a hurry its last chunks may still be on their way; what is saved is right at any moment.
    if (!hurried) await this.#scanners.ended;
    try {
      // Somebody may still see the tree: chunks that are not known by now may get times that are not saved.
      if (hurried && !served.isComplete) served.save();
      else await served.settle();
      this.#writeStatus(served, unmounted ? 'ended' : 'stopped');
    } catch (error) {
      const problem = `the index could not be saved: ${messageOf(error)}`;
      this.#writeStatus(served, unmounted ? 'failed' : 'stopped', problem);
    }
  }

  /** Who unmounts by hand leaves an empty directory, and an `rsync --delete` from that would erase a backup. */
  #removeMountpoint(): void {
    try {
      if (this.#config !== undefined) fs.rmdirSync(this.#config.mountpoint);
    } catch {
      // Cleanup was faster, or something is mounted or stored there.
    }
  }

  #saveIfChanged(served: ServedTree): void {
    const { resolved } = served.scanState();
    if (resolved === this.#savedResolved) return;
    try {
      served.save();
      this.#savedResolved = resolved;
    } catch (error) {
      console.error(`the index could not be saved: ${messageOf(error)}`);
    }
  }

  /** What nobody reads now, and `list` and `cleanup` tell. */
  #findings(served: ServedTree): Pick<DaemonStatus, 'warnings' | 'lost'> {
    const { warnings: ofSnapshots = [], lost: ofThem = [] } = this.#watch?.findings ?? {};
    const found = served.trackerFindings();
    const warnings = [...ofSnapshots, ...found.warnings];
    const lost = [...ofThem, ...found.lost];
    return { ...(warnings.length === 0 ? {} : { warnings }), ...(lost.length === 0 ? {} : { lost }) };
  }

  #writeStatus(served: ServedTree, state: DaemonStatus['state'], error?: string): void {
    const counters = this.#server?.counters() ?? sumCounters([]);
    const facts = {
      state,
      scan: served.scanState(),
      counters,
      ...(this.#scanSeconds === undefined ? {} : { scanSeconds: this.#scanSeconds }),
      ...this.#findings(served),
      ...(error === undefined ? {} : { error }),
    };
    const text = JSON.stringify(facts);
    if (text === this.#lastStatus) return;
    this.#lastStatus = text;
    try {
      writeStatus(this.sessionDirectory, { ...facts, at: new Date().toISOString() });
    } catch (problem) {
      console.error(`the status could not be written: ${messageOf(problem)}`);
    }
  }
}

async function serveNatively(config: DaemonConfig, tree: ChunkTree): Promise<Server> {
  const { serveNative } = await import('../fuse/native/server.js');
  const { ShortInodes } = await import('../fuse/native/short-inodes.js');
  const { mountpoint, source, directIo, allowOther } = config;
  const inodes = new ShortInodes(tree.disks);
  const filesystem = { factory: FACTORY, data: tree };
  return serveNative({ filesystem, mountpoint, source, directIo, allowOther, inodes });
}

const [, , directory] = process.argv;
if (directory === undefined) throw new Error('the daemon is started by chunkmount itself');
await runDaemon(new Daemon(directory));
