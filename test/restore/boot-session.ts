import { createHash } from 'node:crypto';
import * as fs from 'node:fs';
import * as os from 'node:os';
import * as path from 'node:path';
import { expect } from 'vitest';
import { run } from '../../src/host/exec.js';
import { listMounts } from '../../src/host/mountinfo.js';
import { identify, waitForEnd } from '../../src/host/process-identity.js';
import { loadDomain } from '../../src/libvirt/load-domain.js';
import { type CliResult, TestChunkmount } from '../support/chunkmount.js';
import { type TestDomain, TestLibvirt } from '../support/libvirt.js';
import { build, fuseDevice, program, requireAll, root } from '../support/requirements.js';
import { daemonOf } from './image-session.js';
import { CONTENT, holds, removeDomain, type VmTreeOptions, vmTree } from './vm-tree.js';

/** A libvirt of our own, and a directory whose mounts it sees although it lives in another mount namespace. */
export class BootSession {
  readonly chunkmount = new TestChunkmount();
  #count = 0;
  /** Fresh for each test. */
  storage = '';
  tree = '';

  private constructor(
    readonly libvirt: TestLibvirt,
    /** Shared mount: what is mounted below it is seen by libvirtd and QEMU, too. */
    readonly directory: string,
  ) {}

  static async start(): Promise<BootSession> {
    await requireAll(root, build, fuseDevice, program('qemu-img', 'qemu-utils'), program('mount'));
    const directory = fs.mkdtempSync(path.join(fs.realpathSync(os.tmpdir()), 'cm-boot-'));
    await run('mount', ['--bind', directory, directory]);
    await run('mount', ['--make-shared', directory]);
    return new BootSession(await TestLibvirt.start(), directory);
  }

  /** A new storage and a new tree for the next test. */
  fresh(options: VmTreeOptions = {}): void {
    this.#count++;
    this.storage = path.join(this.directory, `images & <${this.#count}>`);
    fs.mkdirSync(this.storage);
    this.tree = path.join(this.directory, `tree ${this.#count}`);
    vmTree(this.tree, options);
  }

  boot(...options: string[]): Promise<CliResult> {
    const where = [`--storage=${this.storage}`, `--connect=${this.libvirt.uri}`];
    return this.chunkmount.run(['boot', this.tree, ...where, ...options]);
  }

  async booted(...options: string[]): Promise<TestDomain> {
    const { exitCode, stdout, stderr } = await this.boot(...options);
    expect(exitCode, stderr).toBe(0);
    return this.libvirt.virsh.find(stdout.trimEnd());
  }

  end(how: 'finish' | 'discard', name = 'mail01-boot'): Promise<CliResult> {
    return this.chunkmount.run(['boot', `--${how}`, name]);
  }

  async ended(how: 'finish' | 'discard', name = 'mail01-boot'): Promise<string> {
    const { exitCode, stdout, stderr } = await this.end(how, name);
    expect(exitCode, stderr).toBe(0);
    return stdout;
  }

  /** Path of a file in the storage. */
  file(name: string): string {
    return path.join(this.storage, name);
  }

  overlay(target: string, name = 'mail01-boot'): string {
    return this.file(`${name}-${target}.qcow2`);
  }

  mountpoint(name = 'mail01-boot'): string {
    return this.file(`${name}.images`);
  }

  async state(name = 'mail01-boot'): Promise<string> {
    return (await loadDomain(this.libvirt.virsh, name)).state;
  }

  /** No images are mounted below the storage, and no daemon of them is there. */
  async expectNoImages(): Promise<void> {
    const mounts = listMounts().filter(({ mountpoint }) => mountpoint.startsWith(`${this.storage}/`));
    expect(mounts).toEqual([]);
    for (const { pid } of ['mail01-boot', 'one', 'two'].flatMap((name) => daemonOf(this.mountpoint(name)))) {
      // One that a test has started with the code of its own is not known to the program, which waits for its own only.
      const daemon = identify(pid);
      expect(daemon === undefined || (await waitForEnd(daemon, 60_000))).toBe(true);
    }
  }

  /** Names of boots that the state directory has. */
  boots(): string[] {
    const directory = path.join(this.chunkmount.stateDirectory, 'boots');
    return fs.existsSync(directory) ? fs.readdirSync(directory).filter((name) => name !== '.locks') : [];
  }

  /** Of the boots of this test nothing is there: no VM, file, mount, process, record or lock. */
  async expectNothing(): Promise<void> {
    expect(await this.libvirt.virsh.list()).toEqual([]);
    expect(fs.readdirSync(this.storage)).toEqual([]);
    await this.expectNoImages();
    expect(this.boots()).toEqual([]);
    const locks = path.join(this.chunkmount.stateDirectory, 'boots', '.locks');
    if (fs.existsSync(locks))
      expect(fs.readdirSync(locks).filter((name) => name.endsWith('.json'))).toEqual([]);
  }

  /** The disks are whole files, with what the guest wrote and what the backup has below; nothing of the images is left. */
  async expectFinished(writes: readonly Written[], name = 'mail01-boot'): Promise<void> {
    for (const target of ['vda', 'vdb'] as const) {
      const overlay = this.overlay(target, name);
      const { stdout } = await run('qemu-img', ['info', '-U', '--output=json', overlay]);
      expect(JSON.parse(stdout)).not.toHaveProperty('backing-filename');
      expect(await holds(overlay, 'qcow2', contentAfter(target, writes), this.directory), target).toBe(true);
    }
    await this.expectNoImages();
    expect(fs.readdirSync(this.storage).sort()).toEqual([`${name}-vda.qcow2`, `${name}-vdb.qcow2`]);
    expect(this.boots()).toEqual([]);
  }

  /** Begins a copy of vda that takes longer than anything else; to be called when it may go on at full speed. */
  async pullSlowly(uuid: string): Promise<() => Promise<void>> {
    const disk = ['--domain', uuid, '--path', 'vda', '--bytes', '--bandwidth'];
    await this.libvirt.virsh.call('blockpull', [...disk, String(64 * 1024)]);
    return async () => {
      await this.libvirt.virsh.call('blockjob', [...disk, '0']);
    };
  }

  /** What the tree is: every path, with its content and the time of its last change. */
  treeSum(): string {
    const hash = createHash('sha256');
    for (const name of fs.readdirSync(this.tree, { recursive: true, encoding: 'utf8' }).sort()) {
      const stat = fs.statSync(path.join(this.tree, name), { bigint: true });
      hash.update(`${name} ${stat.mode} ${stat.mtimeNs} ${stat.ctimeNs}\n`);
      if (stat.isFile()) hash.update(fs.readFileSync(path.join(this.tree, name)));
    }
    return hash.digest('hex');
  }

  /** Ends what a test left, however it failed. */
  async sweep(): Promise<void> {
    for (const { name } of await this.libvirt.virsh.list()) await removeDomain(this.libvirt, name);
    for (const name of this.boots()) await this.chunkmount.run(['boot', '--discard', name]);
    fs.rmSync(this.storage, { recursive: true, force: true });
  }

  async close(): Promise<void> {
    await this.chunkmount.close();
    await this.libvirt.close();
    await run('umount', [this.directory]);
    fs.rmSync(this.directory, { recursive: true });
  }
}

/** What a guest wrote. */
export interface Written {
  readonly target: 'vda' | 'vdb';
  readonly offset: number;
  readonly length: number;
  readonly pattern: number;
}

/** The content of a disk of `vmTree` after some writes, as long as QEMU makes it. */
export function contentAfter(target: 'vda' | 'vdb', writes: readonly Written[]): Buffer {
  const content = Buffer.alloc(Math.ceil(CONTENT[target].byteLength / 512) * 512);
  CONTENT[target].copy(content);
  for (const write of writes) {
    if (write.target === target) content.fill(write.pattern, write.offset, write.offset + write.length);
  }
  return content;
}
