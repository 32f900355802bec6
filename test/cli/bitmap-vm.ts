import { createHash } from 'node:crypto';
import * as fs from 'node:fs';
import * as path from 'node:path';
import { expect } from 'vitest';
import { run } from '../../src/host/exec.js';
import { identityOf } from '../../src/snapshot/image-identity.js';
import { TestChunkmount } from '../support/chunkmount.js';
import { noise } from '../support/images.js';
import type { TestDomain, TestLibvirt } from '../support/libvirt.js';

export const CHUNK = 64 * 1024;
/** Of vda: enough that the sample of an audit (16 chunks) is a small part. */
export const CHUNKS = 128;
/** Of vdb, which is raw. */
export const RAW_CHUNKS = 8;

/** What an audit reads at most. */
export const AUDIT = 16 * CHUNK;

const SCRIPT = 'for disk in vda vdb; do cat "$CHUNKMOUNT_TREE/$disk"/*/* | sha256sum; done';

/** What a session showed and told. */
export interface BitmapSession {
  readonly exitCode: number | undefined;
  readonly stdout: string;
  readonly stderr: string;
  /** What was said of vda's tracking. */
  readonly why: string;
  readonly bytesRead: number;
}

/** A VM with a qcow2 and a raw disk, its backups by `--snapshot=pull`, and a copy of what the disks have to be. */
export class BitmapVm {
  readonly chunkmount = new TestChunkmount();
  readonly directory: string;
  readonly vda: string;
  readonly vdb: string;
  readonly content = { vda: noise(CHUNKS * CHUNK, 1), vdb: noise(RAW_CHUNKS * CHUNK, 2) };
  domain!: TestDomain;
  #pattern = 0;

  private constructor(
    readonly libvirt: TestLibvirt,
    readonly name: string,
  ) {
    this.directory = path.join(libvirt.directory, name);
    this.vda = path.join(this.directory, 'vda.qcow2');
    this.vdb = path.join(this.directory, 'vdb.img');
  }

  static async make(libvirt: TestLibvirt, name: string): Promise<BitmapVm> {
    const vm = new BitmapVm(libvirt, name);
    fs.mkdirSync(vm.directory);
    fs.writeFileSync(vm.vdb, vm.content.vdb);
    const raw = `${vm.vda}.raw`;
    fs.writeFileSync(raw, vm.content.vda);
    await run('qemu-img', ['convert', '-f', 'raw', '-O', 'qcow2', raw, vm.vda]);
    fs.rmSync(raw);
    await vm.define();
    return vm;
  }

  async define(): Promise<void> {
    this.domain = await this.libvirt.define(this.name, [
      { target: 'vda', path: this.vda, format: 'qcow2' },
      { target: 'vdb', path: this.vdb, format: 'raw' },
    ]);
  }

  virsh(command: string, ...args: string[]): Promise<string> {
    return this.libvirt.virsh.call(command, ['--domain', this.domain.uuid, ...args], 90_000);
  }

  /** qemu-io inside of the VM's QEMU. */
  async #guest(target: 'vda' | 'vdb', command: string): Promise<void> {
    const disk = `/machine/peripheral/virtio-disk${target === 'vda' ? 0 : 1}/virtio-backend`;
    const said = await this.virsh(
      'qemu-monitor-command',
      '--hmp',
      '--cmd',
      `qemu-io -d ${disk} "${command}"`,
    );
    expect(said.trim()).toBe('');
  }

  /** The guest writes bytes that were never there, into the given chunks. */
  async write(chunks: readonly number[], target: 'vda' | 'vdb' = 'vda', length = 4096): Promise<void> {
    for (const chunk of chunks) {
      this.#pattern = (this.#pattern % 255) + 1;
      const start = chunk * CHUNK + 512;
      await this.#guest(target, `write -P ${this.#pattern} ${start} ${length}`);
      this.content[target].fill(this.#pattern, start, start + length);
    }
    if (chunks.length > 0) await this.#guest(target, 'flush');
  }

  /** Another program writes into the image; the VM is off. */
  async writeOffline(chunk: number): Promise<void> {
    this.#pattern = (this.#pattern % 255) + 1;
    const start = chunk * CHUNK;
    await run('qemu-io', ['-f', 'qcow2', '-c', `write -P ${this.#pattern} ${start} 4096`, this.vda]);
    this.content.vda.fill(this.#pattern, start, start + 4096);
  }

  args(...options: string[]): string[] {
    const given = [`--vm=${this.name}`, `--connect=${this.libvirt.uri}`, `--chunk-size=${CHUNK}`];
    return [...given, '--snapshot=pull', '--debug', ...options];
  }

  async session(...options: string[]): Promise<BitmapSession> {
    const command = ['run', ...this.args(...options), '--', 'sh', '-c', SCRIPT];
    const { exitCode, stdout, stderr } = await this.chunkmount.run(command);
    return {
      exitCode,
      stdout,
      stderr,
      why: /disk vda: ((?:tracker .* knows what|all of) .*)/.exec(stderr)?.[1] ?? '',
      bytesRead: Number(/(\d+) bytes read of the disks/.exec(stderr)?.[1]),
    };
  }

  /** A session whose tree is the disks. */
  async good(...options: string[]): Promise<BitmapSession> {
    const session = await this.session(...options);
    expect(session, session.stderr).toMatchObject({
      exitCode: 0,
      stderr: expect.not.stringMatching(/warning: (?!disk vda: its index is gone)/),
    });
    expect(session.stdout.match(/[0-9a-f]{64}/g), session.stderr).toEqual(this.sums());
    return session;
  }

  /** A session that knows what was written, and reads nothing else of vda. */
  async tracked(changed: number): Promise<BitmapSession> {
    const session = await this.good();
    expect(session.why, session.stderr).toContain(
      `tracker bitmap knows what changed: ${changed * CHUNK} bytes`,
    );
    expect(session.bytesRead).toBeLessThanOrEqual((changed + RAW_CHUNKS) * CHUNK + AUDIT);
    return session;
  }

  /** A session that has to read all, and says why. */
  async full(why: RegExp | string, ...options: string[]): Promise<BitmapSession> {
    const session = await this.good(...options);
    expect(session.why).toMatch(/^all of it is read/);
    expect(session.why).toMatch(why);
    expect(session.bytesRead).toBe((CHUNKS + RAW_CHUNKS) * CHUNK);
    return session;
  }

  sums(): string[] {
    const sum = (bytes: Buffer) => createHash('sha256').update(bytes).digest('hex');
    return [sum(this.content.vda), sum(this.content.vdb)];
  }

  async checkpoints(): Promise<string[]> {
    return (await this.virsh('checkpoint-list', '--name')).split('\n').filter((line) => line !== '');
  }

  get images(): string[] {
    return fs.readdirSync(this.directory).sort();
  }

  /** Another file of the same content takes the image's place. */
  replaceImage(): void {
    const before = identityOf(this.vda);
    fs.copyFileSync(this.vda, `${this.vda}.new`);
    fs.renameSync(`${this.vda}.new`, this.vda);
    expect(identityOf(this.vda)).not.toEqual(before);
  }

  indexPath(file: string): string {
    return path.join(this.chunkmount.stateDirectory, 'index', this.name, file);
  }

  async close(): Promise<void> {
    await this.chunkmount.run(['cleanup', '--all', '--kept']);
    await this.chunkmount.close();
  }
}
