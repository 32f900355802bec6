import * as fs from 'node:fs';
import * as path from 'node:path';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { run } from '../../src/host/exec.js';
import { inspectImage } from '../../src/image/inspect.js';
import { silentReporter } from '../../src/report/reporter.js';
import type { JournalEntry } from '../../src/session/journal.js';
import { identityOf, writeMark } from '../../src/snapshot/image-identity.js';
import { REFLINK_KIND } from '../../src/snapshot/watched-kinds.js';
import { reflinkTracker } from '../../src/tracking/reflink.js';
import type { Changes, Facts, Observation, TrackedDisk } from '../../src/tracking/tracker.js';
import { REFLINK_KINDS, TestFileSystem } from '../support/file-systems.js';
import { noise } from '../support/images.js';

const CLUSTER = 65536;
const SIZE = 16 * CLUSTER;

let directory: string;
let base: string;
let count = 0;

/** An image, and what the tracker finds out about clones of it. */
class Image {
  readonly path: string;
  clones = 0;
  before: Facts | undefined;

  constructor(readonly format: 'raw' | 'qcow2') {
    this.path = path.join(directory, `image.${format}`);
  }

  async qemuImg(...args: string[]): Promise<void> {
    await run('qemu-img', [...args], { cwd: directory });
  }

  async write(offset: number, length: number, options = ''): Promise<void> {
    const pattern = options === '-z' ? '' : `-P ${(++count % 200) + 1}`;
    const command = `write ${options} ${pattern} ${offset} ${length}`;
    await run('qemu-io', ['-f', this.format, '-c', command, this.path]);
  }

  async make(): Promise<void> {
    if (this.format === 'raw') return fs.writeFileSync(this.path, noise(SIZE, 1));
    await this.qemuImg('create', '-q', '-f', 'qcow2', '-F', 'raw', '-b', 'base.raw', this.path);
    await this.write(4 * CLUSTER, 8 * CLUSTER);
  }

  async #disk(file: string, snapshot: JournalEntry | undefined): Promise<TrackedDisk> {
    const reference = { path: file, format: this.format };
    const { layers, sources, extents } = await inspectImage(reference, { reporter: silentReporter });
    // The backing file seems to have been written long ago.
    return { target: 'vda', layers, sources, extents, since: Date.now() + 5_000, snapshot, keep: true };
  }

  /** Clones the image as --snapshot=reflink does, and compares it with the last one of which that was done. */
  async session(change: (entry: JournalEntry) => void = () => {}): Promise<Changes> {
    const clone = path.join(directory, `vda.cm-${++this.clones}.clone`);
    await run('cp', ['--reflink=always', this.path, clone]);
    fs.chmodSync(clone, 0o400);
    const image = { path: this.path, identity: identityOf(this.path) };
    const record = { session: 's', target: 'vda', clone, image, file: identityOf(clone) };
    const entry = { seq: 1, kind: REFLINK_KIND, data: { ...record, mark: writeMark(clone) }, done: true };
    change(entry);
    return this.compare(await this.#disk(clone, entry));
  }

  /** As where nothing is made, because nobody writes the image. */
  async sessionOfItself(): Promise<Changes> {
    return this.compare(await this.#disk(this.path, undefined));
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
    return path.join(directory, `vda.cm-${this.clones}.clone`);
  }
}

const known = (...ranges: [number, number][]) => ({
  kind: 'known',
  ranges: ranges.map(([start, end]) => ({ start, end })),
});
const unknown = (reason: RegExp) => ({ kind: 'unknown', reason: expect.stringMatching(reason) });

/** Sets a file's times to the nanosecond to what they were before `work`, as far as a program can. */
async function timesKept(file: string, work: () => void | Promise<void>): Promise<void> {
  await run('touch', [`--reference=${file}`, `${file}.times`]);
  await work();
  await run('touch', [`--reference=${file}.times`, file]);
}

function overwrite(file: string): void {
  const fd = fs.openSync(file, 'r+');
  fs.writeSync(fd, 'x', 7);
  fs.closeSync(fd);
}

/** Puts a copy in the place of a file, with everything that cp can copy. */
async function replaced(file: string): Promise<void> {
  await run('cp', ['--preserve=all', '--reflink=auto', file, `${file}.copy`]);
  fs.renameSync(`${file}.copy`, file);
}

describe.each(REFLINK_KINDS)('on %s', (kind) => {
  let fileSystem: TestFileSystem;

  beforeAll(async () => {
    fileSystem = await TestFileSystem.make(kind);
  });
  afterAll(() => fileSystem?.close());
  beforeEach(() => {
    directory = fs.mkdtempSync(path.join(fileSystem.directory, 'd-'));
    base = path.join(directory, 'base.raw');
    fs.writeFileSync(base, noise(SIZE, 2));
  });
  afterEach(() => fs.rmSync(directory, { recursive: true }));

  async function image(format: 'raw' | 'qcow2'): Promise<Image> {
    const made = new Image(format);
    await made.make();
    await made.session();
    return made;
  }

  it('a raw image: what was written, no more', async () => {
    const one = await image('raw');
    expect(await one.session()).toEqual(known());
    await one.write(5 * CLUSTER, 4096);
    await one.write(9 * CLUSTER + 512, 512);
    const expected = known([5 * CLUSTER, 5 * CLUSTER + 4096], [9 * CLUSTER, 9 * CLUSTER + 4096]);
    expect(await one.session()).toEqual(expected);
    expect(await one.session()).toEqual(known());
    await run('fallocate', ['--punch-hole', '--offset', `${CLUSTER}`, '--length', `${CLUSTER}`, one.path]);
    expect(await one.sessionOfItself()).toEqual(known([CLUSTER, 2 * CLUSTER]));
  });

  it('a qcow2 image: what was written, wherever it went', async () => {
    const one = await image('qcow2');
    expect(await one.session()).toEqual(known());
    await one.write(5 * CLUSTER, 4096);
    await one.write(2 * CLUSTER, CLUSTER);
    await one.write(14 * CLUSTER, CLUSTER, '-z');
    const expected = [
      [2 * CLUSTER, 3 * CLUSTER],
      [5 * CLUSTER, 5 * CLUSTER + 4096],
      [14 * CLUSTER, 15 * CLUSTER],
    ] as [number, number][];
    expect(await one.session()).toEqual(known(...expected));
    await one.write(CLUSTER, CLUSTER, '-c');
    expect(await one.session()).toEqual(known([CLUSTER, 2 * CLUSTER]));
    // What is compressed is looked at each time: nobody can tell.
    expect(await one.sessionOfItself()).toEqual(known([CLUSTER, 2 * CLUSTER]));
  });

  it('a qcow2 image that was reverted to an internal snapshot', async () => {
    const one = await image('qcow2');
    await one.qemuImg('snapshot', '-c', 'one', one.path);
    expect(await one.session()).toEqual(known());
    await one.write(5 * CLUSTER, CLUSTER);
    await one.write(15 * CLUSTER, CLUSTER);
    const written: [number, number][] = [
      [5 * CLUSTER, 6 * CLUSTER],
      [15 * CLUSTER, 16 * CLUSTER],
    ];
    expect(await one.session()).toEqual(known(...written));
    await one.qemuImg('snapshot', '-a', 'one', one.path);
    expect(await one.session()).toEqual(known(...written));
  });

  it('an image that a copy was written over: all of it', async () => {
    const one = await image('raw');
    await run('cp', ['--sparse=never', '--reflink=never', one.path, `${one.path}.copy`]);
    await timesKept(
      one.path,
      async () => void (await run('dd', [`if=${one.path}.copy`, `of=${one.path}`, 'bs=1M', 'conv=notrunc'])),
    );
    expect(await one.session()).toEqual(known([0, SIZE]));
  });

  describe('all is read', () => {
    it.each<
      [what: string, format: 'raw' | 'qcow2', odd: (one: Image) => void | Promise<void>, reason: RegExp]
    >([
      ['the kept clone gone', 'raw', ({ kept }) => fs.rmSync(kept), /ENOENT/],
      [
        'the kept clone written, and its time set back',
        'raw',
        ({ kept }) => timesKept(kept, () => overwrite(kept)),
        /the kept clone .* was written/,
      ],
      [
        'the kept clone replaced by its copy',
        'raw',
        ({ kept }) => replaced(kept),
        /the kept clone .* is another file/,
      ],
      [
        'the kept clone cut',
        'raw',
        ({ kept }) => fs.truncateSync(kept, 4096),
        /the kept clone .* has another size/,
      ],
      [
        'the kept clone made writable',
        'raw',
        ({ kept }) => fs.chmodSync(kept, 0o600),
        /the kept clone .* was written/,
      ],
      [
        'the image replaced by its copy',
        'raw',
        ({ path: file }) => replaced(file),
        /the image is another file/,
      ],
      [
        'a raw image resized',
        'raw',
        ({ path: file }) => fs.truncateSync(file, SIZE + 512),
        /has another size/,
      ],
      [
        'a qcow2 image resized',
        'qcow2',
        (one) => one.qemuImg('resize', '-q', one.path, `${SIZE * 2}`),
        /the disk was resized from 1048576 bytes/,
      ],
      [
        'the backing file written',
        'qcow2',
        () => timesKept(base, () => overwrite(base)),
        /base.raw was written/,
      ],
      ['the backing file replaced', 'qcow2', () => replaced(base), /base.raw is another file/],
      [
        'another layer below',
        'qcow2',
        async (one) => {
          await one.qemuImg('create', '-q', '-f', 'qcow2', '-F', 'raw', '-b', 'base.raw', 'middle.qcow2');
          await one.qemuImg('rebase', '-u', '-F', 'qcow2', '-b', 'middle.qcow2', one.path);
        },
        /more or fewer layers/,
      ],
      [
        'no layer below any more',
        'qcow2',
        (one) => one.qemuImg('rebase', '-f', 'qcow2', '-b', '', one.path),
        /more or fewer layers/,
      ],
      [
        'what it knew damaged',
        'raw',
        (one) => {
          one.before = { ...one.before, file: { path: 7 } };
        },
        /what it knew of the last session is damaged/,
      ],
      [
        'what it knew of another image',
        'raw',
        (one) => {
          one.before = { ...one.before, image: { inode: '1', birth: '1' } };
        },
        /the image is another file/,
      ],
      [
        'another format',
        'raw',
        (one) => {
          (one.before!.file as { format: string }).format = 'qcow2';
        },
        /is read as raw, and was as qcow2/,
      ],
    ])('%s', async (_, format, odd, reason) => {
      const one = await image(format);
      await odd(one);
      expect(await one.session()).toEqual(unknown(reason));
    });
  });

  it('says nothing of a clone that was written, or is none', async () => {
    const one = await image('raw');
    expect(await one.session(({ data }) => Object.assign(data, { mark: 'time 1' }))).toEqual(
      unknown(/was written/),
    );
    const elsewhere = { clone: one.path };
    expect(await one.session(({ data }) => Object.assign(data, elsewhere))).toEqual(
      unknown(/not what is read/),
    );
    const other = await one.session((entry) => Object.assign(entry, { kind: 'lvm-snapshot' }));
    expect(other).toEqual(unknown(/none of --snapshot=reflink/));
  });
});

it('says nothing where files cannot share blocks', async () => {
  const fileSystem = await TestFileSystem.make('ext4', { size: 16 * 2 ** 20 });
  try {
    directory = fileSystem.directory;
    const one = new Image('raw');
    await one.make();
    expect(await one.sessionOfItself()).toEqual(unknown(/is not on XFS or Btrfs/));
  } finally {
    await fileSystem.close();
  }
});
