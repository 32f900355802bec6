import * as fs from 'node:fs';
import * as path from 'node:path';
import { pathToFileURL } from 'node:url';
import { expect } from 'vitest';
import { createHasher } from '../../src/chunks/chunk-hash.js';
import { formatHash } from '../../src/chunks/paths.js';
import { sumsLine } from '../../src/chunks/sums-line.js';
import { TestChunkmount } from '../support/chunkmount.js';
import { noise } from '../support/images.js';

export const CHUNK = 4096;
/** Enough that a sample of 16 is not all of them; the last one is short. */
export const CHUNKS = 70;
export const SIZE = (CHUNKS - 1) * CHUNK + 1024;

/** Chunks that are holes of the image. */
const HOLES = { first: 40, end: 50 };

/** A file that was just written counts as racy (see still.ts): each session is this much later, for the program. */
const STEP_MS = 3_000;

const CLOCK = pathToFileURL(path.join(import.meta.dirname, 'fixtures/clock.mjs')).href;
const hasher = await createHasher();

/** Of the sums, and then of each chunk, a line: name, inode, mtime, ctime, size, blocks; then the sums. */
const SCRIPT =
  'find "$1/disk0.xxh64" -printf "%i %T@ %C@ %s\\n\\n"; LC_ALL=C find "$1/disk0" -type f -printf "%P %i %T@ %C@ %s %b\\n" | sort; echo; cat "$1/disk0.xxh64"';

/** What a session showed and told. */
export interface Session {
  readonly exitCode: number | undefined;
  readonly stderr: string;
  /** All that stat says of each chunk, by its path. */
  readonly stats: ReadonlyMap<string, string>;
  readonly sums: string;
  /** What stat says of the sums file, before anybody looked at a chunk. */
  readonly sumsStat: string;
  readonly kept: number;
  readonly audited: number;
  readonly bytesRead: number;
}

/** An image, and sessions of it one after the other. */
export class TrackedDisk {
  readonly chunkmount = new TestChunkmount();
  readonly image = this.chunkmount.path('disk.raw');
  #sessions = 0;
  #writes = 0;
  readonly #meanwhile = new Set<number>();
  /** The sums of good sessions, by what stat said of them. */
  readonly #shownSums = new Map<string, string>();

  constructor() {
    fs.writeFileSync(this.image, noise(SIZE, 1));
    this.punch(HOLES.first, HOLES.end);
  }

  close(): Promise<void> {
    return this.chunkmount.close();
  }

  /** Makes a hole of the chunks from `first` up to `end`. */
  punch(first: number, end: number): void {
    const bytes = fs.readFileSync(this.image);
    bytes.fill(0, first * CHUNK, end * CHUNK);
    const fd = fs.openSync(this.image, 'r+');
    fs.ftruncateSync(fd, first * CHUNK);
    fs.ftruncateSync(fd, end * CHUNK);
    fs.writeSync(fd, bytes, end * CHUNK, bytes.length - end * CHUNK, end * CHUNK);
    fs.closeSync(fd);
  }

  #write(bytes: Uint8Array, offset: number): void {
    const fd = fs.openSync(this.image, 'r+');
    fs.writeSync(fd, bytes, 0, bytes.length, offset);
    fs.closeSync(fd);
  }

  /** Makes the chunk one that it never was. */
  change(chunk: number): void {
    this.#write(Buffer.from(`written ${++this.#writes} `), chunk * CHUNK + 8);
  }

  /** Changes it in a session, which may find that out or not: so may the next ones tell of it. */
  changeMeanwhile(chunk: number): void {
    this.#meanwhile.add(chunk);
    this.change(chunk);
  }

  #isExpected(line: string): boolean {
    const found = /warning: .*chunk disk0\/000000\/([0-9a-f]{8}) had changed/.exec(line);
    return found !== null && this.#meanwhile.has(Number.parseInt(found[1]!, 16));
  }

  changeAll(): void {
    for (let chunk = 0; chunk < CHUNKS; chunk++) this.change(chunk);
  }

  /** What the sums have to be. */
  expectedSums(image = this.image, chunkSize = CHUNK): string {
    const size = Math.ceil(fs.statSync(image).size / 512) * 512;
    const bytes = Buffer.concat([fs.readFileSync(image), Buffer.alloc(512)], size);
    const hash = new Uint32Array(2);
    let sums = '';
    for (let chunk = 0; chunk * chunkSize < size; chunk++) {
      hasher.hash(bytes.subarray(chunk * chunkSize, (chunk + 1) * chunkSize), hash, 0);
      sums += sumsLine({ directory: 'disk0', layout: 'chunkmount' }, chunk, formatHash(hash[0]!, hash[1]!));
    }
    return sums;
  }

  /** The program's clock: a step later than the last time, unless told otherwise. */
  clock(step = true): Record<string, string> {
    if (step) this.#sessions++;
    return { NODE_OPTIONS: `--import=${CLOCK}`, TEST_CLOCK: `+${STEP_MS * this.#sessions}` };
  }

  given(...options: string[]): string[] {
    return [`--image=${this.image}`, '--name=demo', `--chunk-size=${CHUNK}`, '--debug', ...options];
  }

  /** A session whose tree is looked at from end to end. */
  async session(options: readonly string[] = [], { step = true }: { step?: boolean } = {}): Promise<Session> {
    const command = ['sh', '-c', SCRIPT, 'sh', this.chunkmount.tree('demo')];
    const result = await this.chunkmount.run(
      ['run', ...this.given(...options), '--', ...command],
      this.clock(step),
    );
    const [sumsStat = '', stats = '', sums = ''] = result.stdout.split('\n\n');
    const told = /(\d+) bytes read of the disks; (\d+) chunks kept unread, (\d+) audited/.exec(result.stderr);
    // Sums that changed never look as they did.
    if (result.exitCode === 0) {
      expect(sums).toBe(this.#shownSums.get(sumsStat) ?? sums);
      this.#shownSums.set(sumsStat, sums);
    }
    const [bytesRead, kept, audited] = (told ?? []).slice(1).map(Number);
    return {
      exitCode: result.exitCode,
      stderr: result.stderr,
      stats: new Map(stats.split('\n').map((line) => [line.split(' ')[0]!, line])),
      sums,
      sumsStat,
      kept: kept ?? -1,
      audited: audited ?? -1,
      bytesRead: bytesRead ?? -1,
    };
  }

  /** The same, of which nothing may be wrong. */
  async good(options: readonly string[] = [], how: { step?: boolean } = {}): Promise<Session> {
    const session = await this.session(options, how);
    const stderr = session.stderr
      .split('\n')
      .filter((line) => !this.#isExpected(line))
      .join('\n');
    expect({ ...session, stderr }).toMatchObject({
      exitCode: 0,
      stderr: expect.not.stringContaining('warning'),
    });
    expect(session.sums).toBe(this.expectedSums());
    return session;
  }

  indexPath(name: string): string {
    return path.join(this.chunkmount.stateDirectory, 'index/demo', name);
  }

  /** Changes the record that the tracker goes on from. */
  // biome-ignore lint/suspicious/noExplicitAny: JSON of the program's own
  edit(change: (record: any) => void): void {
    const file = this.indexPath('disk0.tracking.v1.json');
    const record = JSON.parse(fs.readFileSync(file, 'utf8'));
    change(record);
    fs.writeFileSync(file, JSON.stringify(record));
  }

  /** As if the file system had not told that the image was written since the last session. */
  hideWrites(): void {
    const { mtimeNs, ctimeNs } = fs.statSync(this.image, { bigint: true });
    this.edit((record) => {
      Object.assign(record.bases[0].facts.files[0], { mtime: String(mtimeNs), ctime: String(ctimeNs) });
    });
  }
}
