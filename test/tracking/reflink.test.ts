import * as fs from 'node:fs';
import * as path from 'node:path';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { run } from '../../src/host/exec.js';
import { fileState } from '../../src/tracking/file-state.js';
import { REFLINK_KINDS, TestFileSystem } from '../support/file-systems.js';
import { noise, temporaryDirectory } from '../support/images.js';
import { CLUSTER, Image, known, overwrite, replaced, SIZE, timesKept, unknown } from './reflink-image.js';

let directory: string;
let base: string;
let temporary: string;

describe.each(REFLINK_KINDS)('on %s', (kind) => {
  let fileSystem: TestFileSystem;

  beforeAll(async () => {
    fileSystem = await TestFileSystem.make(kind);
  });
  afterAll(() => fileSystem?.close());
  beforeEach(() => {
    directory = fs.mkdtempSync(path.join(fileSystem.directory, 'd-'));
    temporary = temporaryDirectory();
    base = path.join(directory, 'base.raw');
    fs.writeFileSync(base, noise(SIZE, 2));
  });
  afterEach(() => {
    for (const one of [directory, temporary]) fs.rmSync(one, { recursive: true });
  });

  async function image(format: 'raw' | 'qcow2'): Promise<Image> {
    const made = new Image(directory, format);
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
        'what it knew of an image that had the same inode before',
        'raw',
        (one) => {
          const { inode } = one.before!.image as { inode: string };
          one.before = { ...one.before, image: { inode, birth: '1' } };
        },
        /the image is another file/,
      ],
      [
        'the kept clone on another file system',
        'raw',
        (one) => {
          const elsewhere = path.join(temporary, 'clone');
          fs.writeFileSync(elsewhere, noise(SIZE, 1));
          one.before = { ...one.before, file: fileState(elsewhere, 'raw') };
        },
        /the kept clone .* is on another file system/,
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
    const future = { mark: `time ${10n ** 19n}` };
    const lost = await one.session(({ data }) => {
      Object.assign(data, future, { file: { ...(data.file as object), bootId: 'another' } });
    });
    expect(lost).toEqual(unknown(/was written/));
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
    const one = new Image(directory, 'raw');
    await one.make();
    expect(await one.sessionOfItself()).toEqual(unknown(/is not on XFS or Btrfs/));
  } finally {
    await fileSystem.close();
  }
});
