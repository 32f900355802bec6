import * as fs from 'node:fs';
import { execaSync } from 'execa';
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import { indexFile } from '../../src/backup/daemon-config.js';
import type { DiskTracking } from '../../src/backup/disk-tracking.js';
import { KEPT, MISMATCH, MISMATCH_LATE } from '../../src/content-index/rows.js';
import { DAY_MS, LayeredDisk, SETTINGS } from './layered-disk.js';

let disk: LayeredDisk;
beforeEach(() => {
  disk = new LayeredDisk();
});
afterEach(() => {
  vi.useRealTimers();
  fs.rmSync(disk.directory, { recursive: true });
});

/** What a session finds after a complete one and `odd`. */
async function after(odd: (disk: LayeredDisk) => void | Promise<void>): Promise<DiskTracking> {
  await disk.session();
  await odd(disk);
  return disk.track();
}

/** Writes the file; with its times set back, to the nanosecond, as far as a program can. */
function set(file: string, back: boolean): void {
  const times = `${file}.times`;
  execaSync('touch', [`--reference=${file}`, times]);
  fs.writeFileSync(file, Buffer.alloc(5000, 2));
  if (back) execaSync('touch', [`--reference=${times}`, file]);
}

/** The program's clock; the file system's goes on. */
function setClock(offsetMs: number): void {
  vi.useFakeTimers({ toFake: ['Date'], now: Date.now() + offsetMs });
}

it('an image that was not written since is known not to have changed', async () => {
  expect(await after(() => {})).toMatchObject({
    changes: { kind: 'known', tracker: 'still', ranges: [] },
    observed: [{ tracker: 'still' }],
  });
  // Also under another name, and when some time has passed.
  expect(
    await after(({ image }) => {
      setClock(DAY_MS);
      fs.accessSync(image);
    }),
  ).toMatchObject({ changes: { kind: 'known' } });
});

describe('all is read', () => {
  it.each<[what: string, odd: (disk: LayeredDisk) => void | Promise<void>, reason: RegExp]>([
    ['written', ({ image }) => set(image, false), /disk\.qcow2 was written/],
    ['written, and its time set back', ({ image }) => set(image, true), /disk\.qcow2 was written/],
    ['its backing file written', ({ base }) => set(base, true), /base\.raw was written/],
    ['cut or grown as a file', ({ image }) => fs.truncateSync(image, 6000), /has another size/],
    [
      'replaced by its copy',
      ({ image }) => {
        execaSync('cp', ['--preserve=all', image, `${image}.copy`]);
        fs.renameSync(`${image}.copy`, image);
      },
      /is another file/,
    ],
    [
      'resized',
      (given) => {
        given.size += 512;
      },
      /was resized from 40960 bytes/,
    ],
    [
      'cut into other chunks',
      (given) => {
        given.chunkSize *= 2;
      },
      /the chunk size was 4K/,
    ],
    [
      'read in another format',
      (given) => {
        given.layers = [given.layer(given.image, 'raw'), given.layers[1]!];
      },
      /is read as raw, and was read as qcow2/,
    ],
    [
      'of other layers',
      (given) => {
        given.layers = [given.layers[0]!];
      },
      /more or fewer layers/,
    ],
    ['the index gone', ({ index }) => fs.rmSync(indexFile(index, 'vda')), /its index is gone/],
    [
      'the index damaged',
      ({ index }) => fs.writeFileSync(indexFile(index, 'vda'), 'CMINDEX'),
      /is not an index file/,
    ],
    [
      'the index of another session',
      async (given) => {
        const tracking = await given.track();
        await given.settle(tracking, 77, 3);
      },
      /another one than the last complete session left/,
    ],
    [
      'an older index brought back',
      async (given) => {
        const older = fs.readFileSync(indexFile(given.index, 'vda'));
        await given.session(55);
        fs.writeFileSync(indexFile(given.index, 'vda'), older);
      },
      /another one than the last complete session left/,
    ],
    ['the record gone', ({ record }) => fs.rmSync(record), /no record/],
    ['the record damaged', ({ record }) => fs.writeFileSync(record, '{"version":1'), /record .* cannot be/],
    [
      'the record of a later version',
      (given) =>
        given.edit((record) => {
          record.version = 2;
        }),
      /record .* is damaged/,
    ],
    [
      'what the tracker knew damaged',
      (given) =>
        given.edit((record) => {
          record.bases[0].facts.files[0].inode = 'x';
        }),
      /what it knew of the last session is damaged/,
    ],
    ['the clock set back', () => setClock(-3_600_000), /the clock was set back/],
    [
      'the clock set back by less than the time since',
      (given) => {
        given.edit((record) => {
          record.fullScan -= DAY_MS;
        });
        setClock(-1_000);
        given.quietMs += 1_000;
      },
      /still: the clock was set back/,
    ],
    [
      'another host, or started since',
      (given) =>
        given.edit((record) => {
          record.bases[0].facts.bootId = 'another';
        }),
      /the host was started since/,
    ],
    [
      'wrong before',
      (given) =>
        given.edit((record) => {
          record.distrusted = [{ tracker: 'still', session: 'x', chunk: 3, at: 5 }];
        }),
      /it was wrong in an earlier session/,
    ],
    [
      'long ago',
      (given) =>
        given.edit((record) => {
          record.fullScan -= 30 * DAY_MS;
        }),
      /--full-scan-every/,
    ],
    [
      'asked for',
      (given) => {
        given.settings = { ...SETTINGS, fullScan: true };
      },
      /--full-scan/,
    ],
    [
      'not to be known',
      (given) => {
        given.settings = { ...SETTINGS, track: 'none' };
      },
      /--track=none/,
    ],
    [
      'written a moment before',
      (given) => {
        given.quietMs = -60_000;
      },
      /was written a moment ago/,
    ],
    [
      'of a format with data elsewhere',
      (given) => {
        given.layers = [given.layer(given.image, 'vmdk'), given.layers[1]!];
      },
      /VMDK/,
    ],
    [
      'of a paused VM',
      (given) => {
        given.layers = [{ ...given.layers[0]!, inUse: true }, given.layers[1]!];
      },
      /a VM has it open for writing/,
    ],
    [
      'no file',
      (given) => {
        given.layers = [given.layers[0]!, given.layer('/dev/null', 'raw')];
      },
      /no time of its last write/,
    ],
    [
      'on a file system of no disk',
      (given) => {
        given.layers = [given.layers[0]!, given.layer('/proc/self/comm', 'raw')];
      },
      /not on a local file system/,
    ],
    [
      'gone',
      (given) => {
        given.layers = [given.layers[0]!, given.layer('/no/such/file', 'raw')];
      },
      /ENOENT/,
    ],
  ])('%s', async (_, odd, reason) => {
    const { changes } = await after(odd);
    expect(changes).toEqual({ kind: 'unknown', reason: expect.stringMatching(reason) });
  });

  it('open for writing, now or in the last session', async () => {
    const fd = fs.openSync(disk.image, 'r+');
    await disk.session();
    const during = await disk.track();
    fs.closeSync(fd);
    const reason = expect.stringMatching(/still: .+ \(\d+\) has it open for writing/);
    expect(during).toMatchObject({ changes: { kind: 'unknown', reason }, observed: [] });
    expect((await disk.track()).changes).toMatchObject({ reason: expect.stringContaining('knows nothing') });
  });
});

describe('a session that', () => {
  it('is cut off leaves the record of the one before', async () => {
    await disk.session();
    const tracking = await disk.track();
    const before = fs.readFileSync(disk.record, 'utf8');
    await disk.settle(tracking, 1, 9);
    expect(fs.readFileSync(disk.record, 'utf8')).toBe(before);
    // The index says the same as before, and the image was not written.
    expect((await disk.track()).changes.kind).toBe('known');
  });

  it('sees the image change leaves nothing for the tracker', async () => {
    const tracking = await disk.track();
    expect(tracking.observed.length).toBe(1);
    set(disk.base, true);
    await disk.settle(tracking, 1);
    expect((await disk.track()).changes).toMatchObject({ reason: expect.stringContaining('knows nothing') });
  });

  it('reads all ends the distrust of an earlier one', async () => {
    await disk.session();
    disk.edit((record) => {
      record.distrusted = [{ tracker: 'still', session: 'x', chunk: 3, at: 5 }];
    });
    await disk.session();
    expect((await disk.track()).changes.kind).toBe('known');
  });

  it.each([
    [
      'when rows had been kept leaves nothing for any other',
      5,
      /still: it knows nothing of the last session/,
    ],
    ['before any row was kept leaves what the others know', 0, undefined],
  ])('finds its tracker wrong %s', async (_, kept, reason) => {
    await disk.session();
    const { changes, ...tracking } = await disk.track();
    if (changes.kind === 'unknown') throw new Error(changes.reason);
    const believed: DiskTracking = { ...tracking, changes: { ...changes, tracker: 'overlay' } };
    const late = kept > 0 ? 1 : 0;
    await disk.settle(believed, 1, undefined, { [KEPT]: kept, [MISMATCH]: 4, [MISMATCH_LATE]: late });
    const next = await disk.track();
    expect(next.distrusted).toMatchObject([{ tracker: 'overlay', chunk: 3 }]);
    expect(next.changes).toEqual(
      reason === undefined
        ? expect.objectContaining({ kind: 'known', tracker: 'still' })
        : { kind: 'unknown', reason: expect.stringMatching(reason) },
    );
    // The whole disk was read now.
    await disk.settle(next, 1);
    if (reason !== undefined)
      expect(await disk.track()).toMatchObject({ changes: { kind: 'known' }, distrusted: [] });
  });
});
