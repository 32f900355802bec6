import * as fs from 'node:fs';
import * as os from 'node:os';
import * as path from 'node:path';
import { execa } from 'execa';
import { expect } from 'vitest';
import { findProcesses } from '../../src/host/process-list.js';
import { loadDomain, loadInactive } from '../../src/libvirt/load-domain.js';
import { expectError, traces } from '../cli/expectations.js';
import { type CliResult, TestChunkmount } from '../support/chunkmount.js';
import {
  type Extent,
  eventually,
  hasPattern,
  makeTwoDisks,
  type TestDisk,
  type TestDomain,
  TestLibvirt,
} from '../support/libvirt.js';

const MIB = 1024 * 1024;
export const DISK_SIZE = 4 * MIB;
const PRELOAD = path.join(import.meta.dirname, 'die-at-record.mjs');

/** What the guest writes after the snapshot, and what was there before. */
export const WRITTEN: Extent = { offset: MIB, length: 65536, pattern: 0x22 };
export const BEFORE: Extent = { offset: 2 * MIB, length: 65536, pattern: 0x11 };

/** A row of the table that the suite prints. */
interface Row {
  readonly provider: string;
  readonly killed: string;
  readonly found: string;
  readonly after: string;
}

/** How a VM is frozen, and what that needs. */
export interface Freezing {
  readonly name: string;
  readonly options: readonly string[];
  /** Whether the VM runs before and after. */
  readonly runs: boolean;
  /** Whether the guest goes on writing during the backup. */
  readonly writes: boolean;
}

/** One VM with two disks, and the real program, which is killed. */
export class CrashSession {
  readonly chunkmount = new TestChunkmount();
  readonly rows: Row[] = [];
  disks: TestDisk[] = [];
  domain!: TestDomain;
  #count = 0;

  private constructor(
    readonly libvirt: TestLibvirt,
    /** A file system of 80 MiB, which libvirtd and QEMU see, too. */
    readonly small: string,
  ) {}

  static async start(): Promise<CrashSession> {
    const small = fs.mkdtempSync(path.join(os.tmpdir(), 'cm-small-'));
    await execa('mount', ['-t', 'tmpfs', '-o', 'size=80m,mode=755', 'tmpfs', small]);
    return new CrashSession(await TestLibvirt.start(), small);
  }

  /** A new VM for the next test. */
  async fresh({ runs }: Pick<Freezing, 'runs'>): Promise<void> {
    const directory = path.join(this.libvirt.directory, `images-${++this.#count}`);
    fs.mkdirSync(directory);
    this.disks = await makeTwoDisks(directory, { pattern: BEFORE.pattern, size: DISK_SIZE });
    this.domain = await this.libvirt.define(`vm${this.#count}`, this.disks, { start: runs });
  }

  /** A running VM for all of the tests, on disks that were made elsewhere. */
  async adopt(name: string, disks: TestDisk[]): Promise<void> {
    this.disks = disks;
    this.domain = await this.libvirt.define(name, disks);
  }

  async dispose(): Promise<void> {
    await this.libvirt.remove(this.domain);
    fs.rmSync(this.images, { recursive: true });
  }

  async close(): Promise<void> {
    await this.libvirt.close();
    await this.chunkmount.close();
    await execa('umount', ['--lazy', this.small]);
    fs.rmdirSync(this.small);
  }

  get images(): string {
    return path.dirname(this.disks[0]!.path);
  }

  get sessionDirectory(): string {
    return path.join(this.chunkmount.stateDirectory, 'sessions', this.domain.name);
  }

  get tree(): string {
    return this.chunkmount.tree(this.domain.name);
  }

  mount(...options: string[]): Promise<CliResult> {
    return this.chunkmount.run([`--vm=${this.domain.name}`, `--connect=${this.libvirt.uri}`, ...options]);
  }

  cleanup(): Promise<CliResult> {
    return this.chunkmount.run(['cleanup', `--vm=${this.domain.name}`]);
  }

  /** Runs a command that dies right after its nth journal record. Returns how many it had written when it ended. */
  async dying(records: number, args: readonly string[]): Promise<{ died: boolean; records: number }> {
    const file = this.chunkmount.path('count');
    fs.writeFileSync(file, '0');
    const env = { NODE_OPTIONS: `--import=${PRELOAD}`, CRASH_AT: String(records), CRASH_COUNT: file };
    const { signal, stderr } = await this.chunkmount.start(args, env);
    const died = signal === 'SIGKILL';
    if (!died && signal !== undefined) throw new Error(`ended by ${signal}: ${String(stderr)}`);
    return { died, records: Number(fs.readFileSync(file, 'utf8')) };
  }

  /** Kills the daemon; false if there is none. */
  async killDaemon(): Promise<boolean> {
    const [daemon] = findProcesses((argv) => argv.at(-1) === this.sessionDirectory);
    if (daemon === undefined) return false;
    process.kill(daemon.pid, 'SIGKILL');
    await eventually(async () => findProcesses((argv) => argv.at(-1) === this.sessionDirectory).length === 0);
    return true;
  }

  /** Leaves no room on the small file system. */
  fill(): string {
    const file = path.join(this.small, 'filler');
    const fd = fs.openSync(file, 'w');
    try {
      for (;;) fs.writeSync(fd, Buffer.alloc(MIB));
    } catch {
      // Full.
    } finally {
      fs.closeSync(fd);
    }
    return file;
  }

  /** What `list` calls the session; `nothing` if there is none. */
  async state(): Promise<string> {
    const { sessions } = JSON.parse(await this.chunkmount.succeed('list', '--json')) as {
      sessions: { name: string; state: string }[];
    };
    return sessions.find(({ name }) => name === this.domain.name)?.state ?? 'nothing';
  }

  async guestWrites(): Promise<void> {
    for (const { target } of this.disks) await this.libvirt.guestWrite(this.domain, target, WRITTEN);
  }

  /** Cleanup does its work; with a reason if what was copied is no backup. */
  async cleansUp(bad?: RegExp): Promise<void> {
    const result = await this.cleanup();
    if (bad === undefined) expect(result, result.stderr).toMatchObject({ exitCode: 0, stdout: '' });
    else expect(expectError(result, 1).message).toMatch(bad);
  }

  /** As before the backup, with what the guest wrote last; and another cleanup changes nothing. */
  async expectWell({ runs }: Pick<Freezing, 'runs'>, written: boolean): Promise<void> {
    const { virsh } = this.libvirt;
    const { state } = await virsh.state(this.domain.uuid);
    expect(state).toBe(runs ? 'running' : 'shut off');
    const images = this.disks.map((disk) => disk.path);
    for (const load of [loadDomain(virsh, this.domain.name), loadInactive(virsh, this.domain.uuid)]) {
      const { disks } = await load;
      expect(disks.map((disk) => [disk.path, disk.mirror])).toEqual(
        images.map((image) => [image, undefined]),
      );
    }
    expect(fs.readdirSync(this.images).sort()).toEqual(images.map((image) => path.basename(image)).sort());
    await eventually(async () => traces(this.chunkmount).length === 0).catch(() =>
      expect(traces(this.chunkmount)).toEqual([]),
    );
    for (const { target, path: image, format } of this.disks) {
      if (runs && written) await this.libvirt.guestVerify(this.domain, target, WRITTEN);
      if (written) expect(await hasPattern(image, format, WRITTEN)).toBe(true);
      expect(await hasPattern(image, format, BEFORE)).toBe(true);
    }
    const again = await this.cleanup();
    expect(again).toMatchObject({ exitCode: 0, stdout: '' });
    expect(again.stderr).toContain(`${this.domain.name} has no session`);
  }

  note(provider: string, killed: string, found: string, after = 'as before'): void {
    this.rows.push({ provider, killed, found, after });
  }

  /** What was killed when, and what was found, as Markdown. */
  table(): string {
    const rows = this.rows.map((row) => `| ${row.provider} | ${row.killed} | ${row.found} | ${row.after} |`);
    return [
      '| frozen by | killed or broken | `list` then says | after cleanup |',
      '|---|---|---|---|',
      ...rows,
    ].join('\n');
  }
}
