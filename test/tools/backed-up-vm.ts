import * as fs from 'node:fs';
import * as path from 'node:path';
import { execa } from 'execa';
import { expect } from 'vitest';
import { CLI, TestChunkmount } from '../support/chunkmount.js';
import { diskBytes } from '../support/dumps.js';
import { type TestDomain, TestLibvirt } from '../support/libvirt.js';
import { fuseDevice, program, type Requirement, requireAll, root } from '../support/requirements.js';
import { testBytes } from '../support/trees.js';

export const CHUNK = 16 * 1024;
/** Two chunk directories, the second one with three chunks, the last of them short. */
const SIZE = 258 * CHUNK + 1536;
export const CHUNKS = 259;
/** Chunks that are all zeros at first; `change` writes to one of them. */
export const ZERO_CHUNKS = [100, 255];

/** Where examples/ is. */
export const EXAMPLES = path.resolve(import.meta.dirname, '../../examples');

/** For chunkmount, with every example. */
export const OPTIONS = [`--chunk-size=${CHUNK}`];

export interface Command {
  readonly env?: Readonly<Record<string, string>>;
  readonly cwd?: string;
}

/**
 * The running VM `mail01` with a disk, on a libvirt of its own, and `chunkmount` on PATH, which is ours and keeps what it says on
 * stderr in a log: examples can be run as they are.
 */
export class BackedUpVm {
  readonly chunkmount = new TestChunkmount();
  readonly #log = this.chunkmount.path('log');
  #libvirt: TestLibvirt | undefined;
  #domain: TestDomain | undefined;
  #pattern = 0;

  /** Throws unless all `needs` are met, too. */
  async start(...needs: readonly Requirement[]): Promise<void> {
    await requireAll(root, fuseDevice, program('qemu-img', 'qemu-utils'), ...needs);
    this.#libvirt = await TestLibvirt.start();
    const zeros = ZERO_CHUNKS.map((chunk) => [chunk * CHUNK, (chunk + 1) * CHUNK] as const);
    fs.writeFileSync(this.image, testBytes(SIZE, 5, zeros));
    this.#domain = await this.#libvirt.define('mail01', [{ target: 'vda', path: this.image, format: 'raw' }]);
    const script = `#!/bin/sh\nverb=$1\nshift\nexec '${process.execPath}' '${CLI}' "$verb" --debug "$@" 2>>'${this.#log}'\n`;
    this.write('bin/chunkmount', script, 0o755);
  }

  get image(): string {
    return this.path('vda.img');
  }

  get tree(): string {
    return this.chunkmount.tree('mail01');
  }

  get env(): Record<string, string> {
    return {
      ...this.chunkmount.env,
      LIBVIRT_DEFAULT_URI: this.#libvirt!.uri,
      PATH: `${this.path('bin')}:${process.env.PATH}`,
      LC_ALL: 'C.UTF-8',
    };
  }

  path(...names: string[]): string {
    return this.chunkmount.path(...names);
  }

  write(name: string, content: string, mode = 0o600): void {
    fs.mkdirSync(path.dirname(this.path(name)), { recursive: true });
    fs.writeFileSync(this.path(name), content, { mode });
  }

  /** Defines one more VM, which stays off, with an empty disk. */
  async defineOther(name: string): Promise<void> {
    const image = this.path(`${name}.img`);
    fs.writeFileSync(image, Buffer.alloc(CHUNK));
    await this.#libvirt!.define(name, [{ target: 'vda', path: image, format: 'raw' }], { start: false });
  }

  /** Runs a program; throws with all that was said unless it exits with 0. Returns its stdout. */
  async run(argv: readonly string[], { env = {}, cwd }: Command = {}): Promise<string> {
    const [file = '', ...args] = argv;
    const options = { env: { ...this.env, ...env }, reject: false, stdin: 'ignore' } as const;
    const result = await execa(file, args, cwd === undefined ? options : { ...options, cwd });
    if (result.exitCode !== 0) {
      const said = fs.existsSync(this.#log) ? fs.readFileSync(this.#log, 'utf8').slice(-3000) : '';
      throw new Error(`${argv.join(' ')}: ${result.exitCode}\n${result.stdout}\n${result.stderr}\n${said}`);
    }
    return result.stdout;
  }

  /**
   * The guest writes what it never wrote before: to the end of a chunk, two whole ones and the beginning of another, and a chunk's data
   * becomes zeros. Returns the numbers of these chunks, that of the zeros first.
   */
  async change(): Promise<number[]> {
    const pattern = ++this.#pattern;
    const writes = [
      { offset: pattern * CHUNK, length: CHUNK, pattern: 0 },
      { offset: 254 * CHUNK + 4096, length: 3 * CHUNK, pattern },
    ];
    for (const write of writes) await this.#libvirt!.guestWrite(this.#domain!, 'vda', write);
    return [pattern, 254, 255, 256, 257];
  }

  /** What is on the disk now. */
  async content(): Promise<Buffer> {
    return diskBytes(this.image, 'raw');
  }

  /** How many chunk files were read in each session that has ended since the last call. */
  chunksRead(): number[] {
    const said = fs.readFileSync(this.#log, 'utf8');
    fs.truncateSync(this.#log);
    return [...said.matchAll(/ mail01: (\d+) of \d+ chunk files read;/g)].map((match) => Number(match[1]));
  }

  /** `chunkmount verify` is content with a tree, and an image made from it is `content`. */
  async expectRestorable(tree: string, content: Buffer): Promise<void> {
    await this.chunkmount.succeed('verify', tree);
    const image = this.path('restored.img');
    await this.chunkmount.succeed('restore', tree, `--to=${image}`, '--force');
    expect(fs.readFileSync(image).equals(content), `${tree} is not the disk as it was`).toBe(true);
  }

  async close(): Promise<void> {
    await this.chunkmount.close();
    await this.#libvirt?.close();
  }
}
