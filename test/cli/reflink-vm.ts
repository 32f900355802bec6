import { createHash } from 'node:crypto';
import * as fs from 'node:fs';
import * as path from 'node:path';
import { pathToFileURL } from 'node:url';
import { run } from '../../src/host/exec.js';
import { TestChunkmount } from '../support/chunkmount.js';
import { type FileSystemKind, TestFileSystem } from '../support/file-systems.js';
import { noise } from '../support/images.js';
import { type TestDisk, type TestDomain, TestLibvirt } from '../support/libvirt.js';

export const CHUNK = 64 * 1024;
export const CHUNKS = 32;
export const SIZE = CHUNKS * CHUNK;

/** In place of an option: without --keep-snapshot. */
export const KEEP_NOTHING = 'keep nothing';

export const TARGETS = ['vda', 'vdb'] as const;
export type Target = (typeof TARGETS)[number];

/** Longer than a file that was written counts as racy; see still.ts, which the backing file is left to. */
const QUIET_MS = 1_700;

const PRELOAD = pathToFileURL(path.join(import.meta.dirname, '../crash/die-at-record.mjs')).href;

/** For each disk: what its tracker said, and whether the tree was the disk. */
export interface ReflinkSession {
  readonly exitCode: number | undefined;
  readonly stderr: string;
  /** SHA-256 of each disk as the tree had it. */
  readonly sums: Readonly<Record<string, string>>;
  readonly why: Readonly<Record<Target, string | undefined>>;
  readonly kept: number;
  readonly audited: number;
  readonly bytesRead: number;
}

/** A VM whose images (vda raw, vdb qcow2) are on a file system that shares blocks, and its backups. */
export class ReflinkVm {
  readonly chunkmount = new TestChunkmount();
  readonly directory: string;
  readonly disks: Readonly<Record<Target, TestDisk>>;
  domain!: TestDomain;
  #writes = 0;

  private constructor(
    readonly fileSystem: TestFileSystem,
    readonly libvirt: TestLibvirt,
    readonly name: string,
  ) {
    this.directory = path.join(fileSystem.directory, name);
    this.disks = {
      vda: { target: 'vda', path: path.join(this.directory, 'vda.img'), format: 'raw' },
      vdb: { target: 'vdb', path: path.join(this.directory, 'vdb.qcow2'), format: 'qcow2' },
    };
  }

  /** On a file system of its own. */
  static async make(kind: FileSystemKind): Promise<ReflinkVm> {
    const fileSystem = await TestFileSystem.make(kind);
    const libvirt = await TestLibvirt.start();
    const vm = new ReflinkVm(fileSystem, libvirt, 'mail01');
    await vm.#define();
    return vm;
  }

  /** Another one, on the same file system. */
  async sibling(name: string): Promise<ReflinkVm> {
    const vm = new ReflinkVm(this.fileSystem, this.libvirt, name);
    await vm.#define();
    return vm;
  }

  async #define(): Promise<void> {
    fs.mkdirSync(this.directory);
    const { vda, vdb } = this.disks;
    fs.writeFileSync(vda.path, noise(SIZE, 1));
    // Its first chunks are in a backing file, the next are its own, and the last are nowhere.
    const base = path.join(this.directory, 'base.raw');
    fs.writeFileSync(base, noise(8 * CHUNK, 2));
    await run(
      'qemu-img',
      ['create', '-q', '-f', 'qcow2', '-F', 'raw', '-b', 'base.raw', vdb.path, `${SIZE}`],
      {
        cwd: this.directory,
      },
    );
    await this.writeOff('vdb', 8 * CHUNK, 16 * CHUNK);
    const quiet = new Promise((resolve) => setTimeout(resolve, QUIET_MS));
    this.domain = await this.libvirt.define(this.name, [vda, vdb]);
    await quiet;
  }

  /** Writes what never was there, while the VM is off. */
  async writeOff(target: Target, offset: number, length: number): Promise<void> {
    const { path: file, format } = this.disks[target];
    await run('qemu-io', ['-f', format, '-c', `write -P ${this.#pattern()} ${offset} ${length}`, file]);
  }

  #pattern(): number {
    return (++this.#writes % 250) + 1;
  }

  /** Writes as the guest does, and leaves it to QEMU when that reaches the file. */
  async write(target: Target, offset: number, length: number): Promise<void> {
    const device = `/machine/peripheral/virtio-disk${TARGETS.indexOf(target)}/virtio-backend`;
    const command = `qemu-io -d ${device} "write -P ${this.#pattern()} ${offset} ${length}"`;
    const said = await this.libvirt.virsh.call('qemu-monitor-command', [
      '--domain',
      this.domain.uuid,
      '--hmp',
      '--cmd',
      command,
    ]);
    if (said.trim() !== '') throw new Error(`${command}: ${said}`);
  }

  async stop(): Promise<void> {
    await this.libvirt.virsh.call('destroy', ['--domain', this.domain.uuid]);
  }

  async start(): Promise<void> {
    await this.libvirt.startDomain(this.domain.uuid);
  }

  /** Options of a session that keeps its clones unless told to keep nothing. */
  given(...options: string[]): string[] {
    const { name, libvirt } = this;
    const how = ['--snapshot=reflink', `--chunk-size=${CHUNK / 1024}K`];
    const keep = options.includes(KEEP_NOTHING) ? [] : ['--keep-snapshot'];
    const others = options.filter((option) => option !== KEEP_NOTHING);
    return [`--vm=${name}`, `--connect=${libvirt.uri}`, ...how, ...keep, '--debug', ...others];
  }

  /** A session whose tree is read from end to end. */
  session(...options: string[]): Promise<ReflinkSession> {
    return this.#session(options, {});
  }

  /** The same, which dies by SIGKILL right after that record of its journals is written. Also returns how many it wrote. */
  async dying(at: number, ...options: string[]): Promise<ReflinkSession & { readonly records: number }> {
    const file = this.chunkmount.path('count');
    fs.writeFileSync(file, '0');
    const env = { NODE_OPTIONS: `--import=${PRELOAD}`, CRASH_AT: String(at), CRASH_COUNT: file };
    const session = await this.#session(options, env);
    return { ...session, records: Number(fs.readFileSync(file, 'utf8')) };
  }

  async #session(options: readonly string[], env: Record<string, string>): Promise<ReflinkSession> {
    const sum = (target: string) => `cat ${target}/*/* | sha256sum`;
    const script = `set -e; cd "$1"; xxhsum --quiet -c vda.xxh64 vdb.xxh64; ${TARGETS.map(sum).join('; ')}`;
    const command = ['sh', '-c', script, 'sh', this.chunkmount.tree(this.name)];
    const args = ['run', ...this.given(...options), '--', ...command];
    const { exitCode, stdout, stderr } = await this.chunkmount.run(args, env);
    const lines = stdout.split('\n').map((line) => line.split(' ')[0]!);
    const told = /(\d+) bytes read of the disks; (\d+) chunks kept unread, (\d+) audited/.exec(stderr);
    const why = (target: Target) =>
      new RegExp(`disk ${target}: ((?:tracker \\w+ knows what|all) .*)`).exec(stderr)?.[1];
    return {
      exitCode,
      stderr,
      sums: { vda: lines[0]!, vdb: lines[1]! },
      why: { vda: why('vda'), vdb: why('vdb') },
      bytesRead: Number(told?.[1] ?? -1),
      kept: Number(told?.[2] ?? -1),
      audited: Number(told?.[3] ?? -1),
    };
  }

  /** The same, which has to have gone well and to have shown the disks. Nothing may be written meanwhile. */
  async good(...options: string[]): Promise<ReflinkSession> {
    const session = await this.session(...options);
    if (session.exitCode !== 0) throw new Error(session.stderr);
    const expected = { vda: await this.sum('vda'), vdb: await this.sum('vdb') };
    if (JSON.stringify(session.sums) !== JSON.stringify(expected))
      throw new Error(`the tree is not the disk\n${session.stderr}`);
    return session;
  }

  /** SHA-256 of a disk as its image is now: QEMU has written all of a qcow2 when it stood still last. */
  async sum(target: Target): Promise<string> {
    const { path: file, format } = this.disks[target];
    const raw = this.chunkmount.path(`${target}.raw`);
    await run('qemu-img', ['convert', '-U', '-f', format, '-O', 'raw', file, raw]);
    return createHash('sha256').update(fs.readFileSync(raw)).digest('hex');
  }

  /** Names of all clones, sorted. */
  clones(): string[] {
    return fs
      .readdirSync(this.directory)
      .filter((name) => name.endsWith('.clone'))
      .sort();
  }

  clone(target: Target): string {
    const [name, ...others] = this.clones().filter((file) => file.startsWith(target));
    if (name === undefined || others.length > 0) throw new Error(`clones: ${this.clones().join(' ')}`);
    return path.join(this.directory, name);
  }

  /** Ends what there is of sessions, and the VM. */
  async remove(): Promise<void> {
    await this.chunkmount.run(['cleanup', `--vm=${this.name}`, '--kept']);
    await this.chunkmount.close();
    await this.libvirt.remove(this.domain);
    fs.rmSync(this.directory, { recursive: true, force: true });
  }

  async close(): Promise<void> {
    await this.remove();
    await this.libvirt.close();
    await this.fileSystem.close();
  }
}
