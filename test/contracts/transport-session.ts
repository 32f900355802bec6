import * as fs from 'node:fs';
import * as path from 'node:path';
import type { TransportKind } from '../../src/fuse/transport.js';
import { run } from '../../src/host/exec.js';
import type { ProcessIdentity } from '../../src/host/process-identity.js';
import { findProcesses } from '../../src/host/process-list.js';
import { type CliResult, chunksAmong, rsync, TestChunkmount } from '../support/chunkmount.js';
import { noise } from '../support/images.js';

/** Bytes a chunk, unless a test says otherwise: many chunks in a small image. */
export const CHUNK = 16 * 1024;

export const HASH_XATTR = 'user.chunkmount.xxh64';

/** A disk in a raw image file. */
export class SampleDisk {
  constructor(
    readonly target: string,
    readonly file: string,
    readonly content: Buffer,
    readonly chunkSize: number,
  ) {
    fs.writeFileSync(file, content);
  }

  /** 301 chunks, in two directories: data, stored zeros, and a short last chunk. */
  static long(): Buffer {
    return Buffer.concat([
      ...[noise(CHUNK, 1), Buffer.alloc(CHUNK), Buffer.alloc(CHUNK)],
      ...[noise(297 * CHUNK, 2), noise(1536, 3)],
    ]);
  }

  /** Three chunks, the last one as long as the others. */
  static short(): Buffer {
    return noise(3 * CHUNK, 4);
  }

  static sized(size: number): Buffer {
    return noise(size, 5);
  }

  get directories(): number {
    return Math.ceil(this.content.length / this.chunkSize / 256);
  }

  write(position: number, bytes: Buffer): void {
    bytes.copy(this.content, position);
    fs.writeFileSync(this.file, this.content);
  }
}

export interface ExpectedChunk {
  /** Path in the tree. */
  readonly name: string;
  readonly content: Buffer;
  readonly isZero: boolean;
}

/** The chunks of a disk by the letter of the tree format. */
export function expectedChunks({ target, content, chunkSize }: SampleDisk): ExpectedChunk[] {
  return Array.from({ length: Math.ceil(content.length / chunkSize) }, (_, i) => {
    const directory = (i >> 8).toString(16).padStart(6, '0');
    const bytes = content.subarray(i * chunkSize, (i + 1) * chunkSize);
    return {
      name: `${target}/${directory}/${i.toString(16).padStart(8, '0')}`,
      content: bytes,
      isZero: bytes.every((byte) => byte === 0),
    };
  });
}

/** What `chunkmount list --json` says of a session, as far as tests look at it. */
interface ListedSession {
  readonly state: string;
  readonly daemon?: {
    readonly scan: { readonly chunks: number; readonly resolved: number; readonly changed: number };
    readonly counters: Readonly<Record<string, number>>;
  };
}

const WAIT_MS = 60_000;

/** The real program with images of its own, serving through one transport. */
export class TransportSession {
  readonly #chunkmount = new TestChunkmount();
  #disks = 0;
  /** Milliseconds since the epoch at which the last mount command returned. */
  mountedAt = 0;

  constructor(private readonly kind: TransportKind) {}

  path(name: string): string {
    return this.#chunkmount.path(name);
  }

  disk(name: string, content: () => Buffer, chunkSize = CHUNK): SampleDisk {
    return new SampleDisk(`disk${this.#disks++}`, this.path(`${name}.raw`), content(), chunkSize);
  }

  /** Mounts the disks as tree `demo`. Returns the mountpoint. */
  async mount(disks: readonly SampleDisk[], ...options: string[]): Promise<string> {
    const images = disks.map(({ file }) => file).join(',');
    const sizes = options.some((option) => option.startsWith('--chunk-size'))
      ? []
      : [`--chunk-size=${CHUNK}`];
    const args = [`--image=${images}`, '--name=demo', `--transport=${this.kind}`, ...sizes, ...options];
    const stdout = await this.#chunkmount.succeed('mount', ...args);
    this.mountedAt = Date.now();
    return stdout.trimEnd();
  }

  async cleanup(): Promise<void> {
    await this.#chunkmount.succeed('cleanup', '--name=demo');
  }

  /** Cleans up where that ends with an error. */
  failingCleanup(): Promise<CliResult> {
    return this.#chunkmount.run(['cleanup', '--name=demo']);
  }

  /** The process that serves the tree. */
  daemon(): ProcessIdentity {
    const directory = path.join(this.#chunkmount.stateDirectory, 'sessions', 'demo');
    const found = findProcesses((argv) => argv.includes(directory));
    if (found.length !== 1) throw new Error(`${found.length} daemons`);
    return found[0]!;
  }

  async state(): Promise<ListedSession | undefined> {
    const { sessions } = JSON.parse(await this.#chunkmount.succeed('list', '--json')) as {
      sessions: ListedSession[];
    };
    return sessions[0];
  }

  /** The daemon's counters once they are as wanted; it writes them down once a second. */
  async counters(
    wanted: (counters: Readonly<Record<string, number>>) => boolean = () => true,
  ): Promise<Readonly<Record<string, number>>> {
    const { counters } = await this.#daemonStatus((status) => wanted(status.counters));
    return counters;
  }

  /** What the scan found, once it is over. */
  async scanned(): Promise<{ readonly changed: number }> {
    const { scan } = await this.#daemonStatus((status) => status.scan.resolved === status.scan.chunks);
    return scan;
  }

  async #daemonStatus(
    wanted: (status: NonNullable<ListedSession['daemon']>) => boolean,
  ): Promise<NonNullable<ListedSession['daemon']>> {
    const deadline = Date.now() + WAIT_MS;
    for (;;) {
      const status = (await this.state())?.daemon;
      if (status !== undefined && wanted(status)) return status;
      if (Date.now() > deadline) throw new Error(`the daemon says ${JSON.stringify(status)}`);
      await new Promise((resolve) => setTimeout(resolve, 200));
    }
  }

  /** The disk put together again from a copy of the tree, without any of our programs. */
  async rebuilt(copy: string, { target }: SampleDisk): Promise<string> {
    const out = this.path('rebuilt');
    const script = 'find "$1" -type f | sort | xargs cat > "$2"';
    await system('sh', ['-c', script, 'sh', path.join(copy, target), out]);
    return out;
  }

  close(): Promise<void> {
    return this.#chunkmount.close();
  }
}

/** Runs an ordinary program. Returns its stdout; throws when it fails or says something on stderr. */
export async function system(
  program: string,
  args: readonly string[],
  given: { cwd?: string } = {},
): Promise<string> {
  const { stdout, stderr } = await run(program, args, given);
  if (stderr !== '' && program !== 'dd') throw new Error(`${program}: ${stderr}`);
  return stdout;
}

/** Runs transport-probe.py. */
export async function probe(operation: string, ...args: string[]): Promise<unknown> {
  const script = path.join(import.meta.dirname, 'transport-probe.py');
  return JSON.parse(await system('python3', [script, operation, ...args]));
}

/** Runs `rsync -a --delete`. Returns the chunk files that it sent. */
export async function rsyncChunks(source: string, copy: string, ...options: string[]): Promise<string[]> {
  const { files } = await rsync(source, copy, ...options);
  return chunksAmong(files);
}
