import * as fs from 'node:fs';
import * as path from 'node:path';
import { execa } from 'execa';
import { expect } from 'vitest';
import { findProcesses } from '../../src/host/process-list.js';
import { loadDomain, loadInactive } from '../../src/libvirt/load-domain.js';
import { type CliResult, TestChunkmount } from '../support/chunkmount.js';
import { noise } from '../support/images.js';
import { type Extent, eventually, type TestDisk, type TestDomain, TestLibvirt } from '../support/libvirt.js';

const PRELOAD = path.join(import.meta.dirname, '../crash/die-at-record.mjs');

export const MIB = 1024 * 1024;
export const CHUNK = 64 * 1024;
export const SIZE = 8 * MIB;

/** Chunks of each disk that an audit reads. */
export const AUDIT = 16;

/** What one session told. */
export interface KeptSession {
  readonly result: CliResult;
  /** Of all disks together: bytes that were read at the source, and chunks. */
  readonly read: number;
  readonly kept: number;
  readonly audited: number;
  /** By target: what knew the changes, or why nothing did. */
  readonly why: ReadonlyMap<string, string>;
}

export interface Dying extends KeptSession {
  readonly died: boolean;
  /** How many it wrote into journals. */
  readonly records: number;
}

/** A VM with two disks, a raw one and one of qcow2, which is backed up with --keep-overlay. */
export class KeptOverlayVm {
  readonly chunkmount = new TestChunkmount();
  domain!: TestDomain;
  disks: TestDisk[] = [];
  #count = 0;

  private constructor(readonly libvirt: TestLibvirt) {}

  static async start(): Promise<KeptOverlayVm> {
    return new KeptOverlayVm(await TestLibvirt.start());
  }

  async close(): Promise<void> {
    await this.chunkmount.close();
    await this.libvirt.close();
  }

  get directory(): string {
    return path.dirname(this.disks[0]!.path);
  }

  get name(): string {
    return this.domain.name;
  }

  /** Another VM; its disks hold noise. */
  async fresh(options: { transient?: boolean } = {}): Promise<void> {
    const directory = path.join(this.libvirt.directory, `images-${++this.#count}`);
    fs.mkdirSync(directory);
    this.disks = [
      { target: 'vda', path: path.join(directory, 'vda.raw'), format: 'raw', discard: true },
      { target: 'vdb', path: path.join(directory, 'vdb.qcow2'), format: 'qcow2', discard: true },
    ];
    const [raw, qcow2] = this.disks.map((disk) => disk.path) as [string, string];
    fs.writeFileSync(raw, noise(SIZE, this.#count));
    await execa('qemu-img', ['convert', '-f', 'raw', '-O', 'qcow2', raw, qcow2]);
    this.domain = await this.libvirt.define(`kept${this.#count}`, this.disks, options);
  }

  /** The same VM with nothing but one of its disks. */
  async only(target: string): Promise<void> {
    await this.libvirt.remove(this.domain);
    for (const disk of this.disks.filter((one) => one.target !== target)) fs.rmSync(disk.path);
    this.disks = this.disks.filter((one) => one.target === target);
    this.domain = await this.libvirt.define(this.name, this.disks);
  }

  indexPath(name: string): string {
    return path.join(this.chunkmount.stateDirectory, 'index', this.name, name);
  }

  /** Waits until the session that is mounted knows every chunk. */
  async scanned(): Promise<void> {
    await eventually(async () => {
      const { sessions } = JSON.parse(await this.chunkmount.succeed('list', '--json')) as {
        sessions: { daemon: { scan: { resolved: number; chunks: number } } | null }[];
      };
      const scan = sessions[0]?.daemon?.scan;
      return scan !== undefined && scan.resolved === scan.chunks;
    });
  }

  /** Kills the daemon of the session that is mounted. */
  async killDaemon(): Promise<void> {
    const directory = path.join(this.chunkmount.stateDirectory, 'sessions', this.name);
    const daemons = () => findProcesses((argv) => argv.at(-1) === directory);
    for (const { pid } of daemons()) process.kill(pid, 'SIGKILL');
    await eventually(async () => daemons().length === 0);
  }

  async dispose(): Promise<void> {
    await this.libvirt.remove(this.domain);
    fs.rmSync(this.directory, { recursive: true });
    fs.rmSync(this.chunkmount.stateDirectory, { recursive: true, force: true });
  }

  write(target: string, chunk: number, pattern: number, length = 4096): Promise<void> {
    return this.libvirt.guestWrite(this.domain, target, { offset: chunk * CHUNK, length, pattern });
  }

  verify(target: string, chunk: number, pattern: number): Promise<void> {
    const read: Extent = { offset: chunk * CHUNK, length: 4096, pattern };
    return this.libvirt.guestVerify(this.domain, target, read);
  }

  /** The images that the VM writes to now, and those that it will start with. */
  async paths(): Promise<{ now: (string | undefined)[]; next: (string | undefined)[] }> {
    const { virsh } = this.libvirt;
    const [now, next] = [await loadDomain(virsh, this.name), await loadInactive(virsh, this.domain.uuid)];
    return { now: now.disks.map((disk) => disk.path), next: next.disks.map((disk) => disk.path) };
  }

  /** Of each disk as the guest sees it. */
  async sums(): Promise<string[]> {
    const { disks, active } = await loadDomain(this.libvirt.virsh, this.name);
    const sums: string[] = [];
    for (const disk of disks) {
      if (active) await this.libvirt.guestFlush(this.domain, disk.target);
      const flat = this.chunkmount.path('flat');
      await execa('qemu-img', ['convert', '-U', '-f', disk.format!, '-O', 'raw', disk.path!, flat]);
      sums.push((await execa('sha256sum', [flat])).stdout.split(' ')[0]!);
    }
    return sums;
  }

  args(...options: string[]): string[] {
    return [
      `--vm=${this.name}`,
      `--connect=${this.libvirt.uri}`,
      `--chunk-size=${CHUNK}`,
      '--debug',
      ...options,
    ];
  }

  /** A session whose tree is compared with the disks. */
  async session(...options: string[]): Promise<KeptSession> {
    return this.#session(options, {});
  }

  /** The same; it dies right after its nth journal record. */
  async dying(at: number, ...options: string[]): Promise<Dying> {
    const file = this.chunkmount.path('count');
    fs.writeFileSync(file, '0');
    const env = { NODE_OPTIONS: `--import=${PRELOAD}`, CRASH_AT: String(at), CRASH_COUNT: file };
    const session = await this.#session(options, env);
    const records = Number(fs.readFileSync(file, 'utf8'));
    return { ...session, died: session.result.exitCode === undefined, records };
  }

  async #session(options: readonly string[], env: Record<string, string>): Promise<KeptSession> {
    const before = await this.sums();
    const targets = this.disks.map(({ target }) => target);
    const script =
      `cd "$CHUNKMOUNT_TREE" && xxhsum --quiet -c ${targets.map((target) => `${target}.xxh64`).join(' ')} && ` +
      `for disk in ${targets.join(' ')}; do find $disk -type f | sort | xargs cat | sha256sum; done`;
    const result = await this.chunkmount.run(
      ['run', ...this.args(...options), '--', 'sh', '-c', script],
      env,
    );
    const { exitCode, stdout, stderr } = result;
    // Killed before there was a tree.
    if (exitCode === undefined && stdout === '') return { result, ...told(stderr) };
    expect(
      stdout.split('\n').map((line) => line.split(' ')[0]),
      stderr,
    ).toEqual([...before, '']);
    return { result, ...told(stderr) };
  }

  /** The same, of which nothing may be wrong. */
  async good(...options: string[]): Promise<KeptSession> {
    const session = await this.session('--keep-overlay', ...options);
    expect(session.result, session.result.stderr).toMatchObject({ exitCode: 0 });
    return session;
  }

  /** Of everything that `list` says is kept: the disks. */
  async kept(): Promise<string[]> {
    const { kept } = JSON.parse(await this.chunkmount.succeed('list', '--json')) as {
      kept: { target: string; kind: string }[];
    };
    return kept.map(({ target, kind }) => `${target} ${kind}`).sort();
  }

  cleanup(...options: string[]): Promise<CliResult> {
    return this.chunkmount.run(['cleanup', `--vm=${this.name}`, ...options]);
  }

  /** The VM is on its images, now and at its next start, and nothing else is left. */
  async expectOriginal(): Promise<void> {
    const images = this.disks.map((disk) => disk.path);
    expect(await this.paths()).toEqual({ now: images, next: images });
    expect(fs.readdirSync(this.directory).sort()).toEqual(images.map((image) => path.basename(image)));
    expect(fs.existsSync(path.join(this.chunkmount.stateDirectory, 'kept', this.name))).toBe(false);
  }

  /** Each disk is on one overlay, which lies on its image, now and at its next start. */
  async expectOnOverlays(): Promise<void> {
    const { now, next } = await this.paths();
    expect(next).toEqual(now);
    const loaded = await loadDomain(this.libvirt.virsh, this.name);
    for (const [index, { path: image, backing }] of loaded.disks.entries()) {
      expect(path.basename(image!)).toMatch(/\.cm-/);
      expect(backing?.map(({ path: file }) => file)).toEqual([this.disks[index]!.path]);
    }
    expect(fs.readdirSync(this.directory)).toHaveLength(2 * this.disks.length);
    expect(await this.kept()).toEqual(this.disks.map(({ target }) => `${target} overlay`));
  }
}

/** What a command with --debug said. */
export function told(stderr: string): Omit<KeptSession, 'result'> {
  const scan = /(\d+) bytes read of the disks; (\d+) chunks kept unread, (\d+) audited/.exec(stderr);
  const [read, kept, audited] = (scan ?? []).slice(1).map(Number);
  const why = new Map(
    [...stderr.matchAll(/disk (\w+): (tracker \w+ knows what changed.*|all of it is read.*)/g)].map(
      ([, target, text]) => [target!, text!],
    ),
  );
  return { read: read ?? -1, kept: kept ?? -1, audited: audited ?? -1, why };
}
