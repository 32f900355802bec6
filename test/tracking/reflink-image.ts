import * as fs from 'node:fs';
import * as path from 'node:path';
import { expect } from 'vitest';
import { run } from '../../src/host/exec.js';
import { inspectImage } from '../../src/image/inspect.js';
import { silentReporter } from '../../src/report/reporter.js';
import type { JournalEntry } from '../../src/session/journal.js';
import { identityOf, writeMark } from '../../src/snapshot/image-identity.js';
import { REFLINK_KIND } from '../../src/snapshot/watched-kinds.js';
import { reflinkTracker } from '../../src/tracking/reflink.js';
import type { Changes, Facts, Observation, TrackedDisk } from '../../src/tracking/tracker.js';
import { noise } from '../support/images.js';

export const CLUSTER = 65536;
export const SIZE = 16 * CLUSTER;

let count = 0;

/** An image, and what the tracker finds out about clones of it. */
export class Image {
  readonly path: string;
  clones = 0;
  before: Facts | undefined;

  constructor(
    readonly directory: string,
    readonly format: 'raw' | 'qcow2',
  ) {
    this.path = path.join(this.directory, `image.${format}`);
  }

  async qemuImg(...args: string[]): Promise<void> {
    await run('qemu-img', [...args], { cwd: this.directory });
  }

  async write(offset: number, length: number, options = ''): Promise<void> {
    const pattern = options === '-z' ? '' : `-P ${(++count % 200) + 1}`;
    const command = `write ${options} ${pattern} ${offset} ${length}`;
    await run('qemu-io', ['-f', this.format, '-c', command, this.path]);
  }

  async make(): Promise<this> {
    await this.#create();
    return this;
  }

  async #create(): Promise<void> {
    if (this.format === 'raw') return fs.writeFileSync(this.path, noise(SIZE, 1));
    await this.qemuImg('create', '-q', '-f', 'qcow2', '-F', 'raw', '-b', 'base.raw', this.path);
    await this.write(4 * CLUSTER, 8 * CLUSTER);
  }

  async disk(file: string, snapshot: JournalEntry | undefined): Promise<TrackedDisk> {
    const reference = { path: file, format: this.format };
    const { layers, sources, extents } = await inspectImage(reference, { reporter: silentReporter });
    // The backing file seems to have been written long ago.
    return { target: 'vda', layers, sources, extents, since: Date.now() + 5_000, snapshot, keep: true };
  }

  /** Clones the image as --snapshot=reflink does, and compares it with the last one of which that was done. */
  async session(change: (entry: JournalEntry) => void = () => {}): Promise<Changes> {
    const clone = path.join(this.directory, `vda.cm-${++this.clones}.clone`);
    await run('cp', ['--reflink=always', this.path, clone]);
    fs.chmodSync(clone, 0o400);
    const image = { path: this.path, identity: identityOf(this.path) };
    const record = { session: 's', target: 'vda', clone, image, file: identityOf(clone) };
    const entry = { seq: 1, kind: REFLINK_KIND, data: { ...record, mark: writeMark(clone) }, done: true };
    change(entry);
    return this.compare(await this.disk(clone, entry));
  }

  /** As where nothing is made, because nobody writes the image. */
  async sessionOfItself(): Promise<Changes> {
    return this.compare(await this.disk(this.path, undefined));
  }

  async compare(disk: TrackedDisk): Promise<Changes> {
    const observation: Observation = await reflinkTracker.observe(disk);
    if (observation.kind === 'none') return { kind: 'unknown', reason: observation.reason };
    expect(observation.lasting).toBe(disk.snapshot !== undefined);
    expect(reflinkTracker.stillHolds(observation.facts)).toBe(true);
    const before = this.before;
    // As it comes back from the disk.
    this.before = JSON.parse(JSON.stringify(observation.facts)) as Facts;
    if (before === undefined) return { kind: 'unknown', reason: 'first' };
    return reflinkTracker.changesSince(before, observation.facts, { disk, reporter: silentReporter });
  }

  /** The file of the clone that is kept. */
  get kept(): string {
    return path.join(this.directory, `vda.cm-${this.clones}.clone`);
  }
}

export const known = (...ranges: [number, number][]) => ({
  kind: 'known',
  ranges: ranges.map(([start, end]) => ({ start, end })),
});
export const unknown = (reason: RegExp) => ({ kind: 'unknown', reason: expect.stringMatching(reason) });

/** Sets a file's times to the nanosecond to what they were before `work`, as far as a program can. */
export async function timesKept(file: string, work: () => void | Promise<void>): Promise<void> {
  await run('touch', [`--reference=${file}`, `${file}.times`]);
  await work();
  await run('touch', [`--reference=${file}.times`, file]);
}

export function overwrite(file: string): void {
  const fd = fs.openSync(file, 'r+');
  fs.writeSync(fd, 'x', 7);
  fs.closeSync(fd);
}

/** Puts a copy in the place of a file, with everything that cp can copy. */
export async function replaced(file: string): Promise<void> {
  await run('cp', ['--preserve=all', '--reflink=auto', file, `${file}.copy`]);
  fs.renameSync(`${file}.copy`, file);
}
