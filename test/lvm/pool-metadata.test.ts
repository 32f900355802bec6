import * as fs from 'node:fs';
import * as path from 'node:path';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { run } from '../../src/host/exec.js';
import { silentReporter } from '../../src/report/reporter.js';
import { Journal } from '../../src/session/journal.js';
import { undoAll } from '../../src/session/undo.js';
import { volumeByName } from '../../src/snapshot/lvm/logical-volume.js';
import {
  metadataUndo,
  POOL_METADATA_KIND,
  type PoolName,
  whileHoldingMetadata,
} from '../../src/snapshot/lvm/metadata.js';
import { openFiles } from '../support/descriptors.js';
import { programFirst } from '../support/dumps.js';
import { DyingJournal } from '../support/dying-journal.js';
import { temporaryDirectory } from '../support/images.js';
import { deviceMapper, program, requireAll } from '../support/requirements.js';
import { makePool, makeVolume, removeVolumes, VOLUME_GROUP } from '../support/volumes.js';
import { heldIn } from './thin-sessions.js';

const POOL = 'held';
const METADATA = `/dev/mapper/${VOLUME_GROUP}-${POOL}_tmeta`;

describe('the metadata of a thin pool', () => {
  const { PATH } = process.env;
  let directory: string;
  let journal: Journal;
  let pool: PoolName;

  beforeAll(async () => {
    await requireAll(deviceMapper, program('lvcreate', 'lvm2'), program('dmsetup'));
    await makePool(POOL, 64);
    await makeVolume('in-held', 4, { pool: POOL });
    pool = (await volumeByName(VOLUME_GROUP, POOL))!;
  });
  afterAll(() => removeVolumes(POOL));
  beforeEach(() => {
    directory = temporaryDirectory();
    journal = new Journal(path.join(directory, 'journal.jsonl'));
  });
  afterEach(() => {
    process.env.PATH = PATH;
    journal.close();
    fs.rmSync(directory, { recursive: true });
  });

  /** Puts a shell script in the place of dmsetup, in which `real` is that. */
  function install(script: string): void {
    process.env.PATH = programFirst(
      directory,
      'dmsetup',
      `real() { PATH='${PATH}' dmsetup "$@"; }\n${script}`,
    );
  }

  const message = (text: string) => run('dmsetup', ['message', `${VOLUME_GROUP}-${POOL}-tpool`, '0', text]);
  const hold = <T>(work: () => Promise<T>) => whileHoldingMetadata(pool, { journal, waitSeconds: 5 }, work);
  const heldNow = () => hold(async () => await heldIn(POOL));
  const kinds = () => journal.pending().map(({ kind }) => kind);
  const cleanup = async () =>
    (await undoAll({ journal, reporter: silentReporter }, metadataUndo, new Set())).map(String);

  it('is held while work is done, which may fail, and then by nobody', async () => {
    const device = fs.realpathSync(METADATA);
    expect(await heldNow()).not.toBe('-');
    const failing = hold(async () => {
      expect(kinds()).toEqual([POOL_METADATA_KIND]);
      throw new Error('broken');
    });
    await expect(failing).rejects.toThrow('broken');
    expect(await heldIn(POOL)).toBe('-');
    expect(kinds()).toEqual([]);
    expect(openFiles()).not.toContain(device);
  });

  it.each([1, 3])('is recorded before it is held, and until it is not (%i)', async (records) => {
    const dying = new DyingJournal(path.join(directory, 'dying.jsonl'), records, true);
    const dead = whileHoldingMetadata(pool, { journal: dying, waitSeconds: 5 }, async () => undefined);
    await expect(dead).rejects.toThrow('killed');
    dying.close();
    expect(await heldIn(POOL)).toBe('-');
  });

  it.each([
    ['out of space', 's/ rw / out_of_data_space /'],
    ['read-only', 's/ rw / ro /'],
    ['in need of a repair', 's/_if_no_space - /_if_no_space needs_check /'],
  ])('is not asked for of a pool that is %s', async (_, edit) => {
    install(`real "$@" | sed '${edit}'`);
    await expect(heldNow()).rejects.toThrow(`the thin pool ${VOLUME_GROUP}/${POOL} is full or damaged`);
    expect(kinds()).toEqual([]);
  });

  it('is not ours when the kernel refused it, and may be when nobody knows', async () => {
    const act = (script: string) => install(`case $* in *reserve*) ${script};; *) real "$@";; esac`);
    act('echo no such luck >&2; exit 1');
    await expect(heldNow()).rejects.toThrow('no such luck');
    expect(kinds()).toEqual([]);
    act('real "$@"; kill -9 $$');
    await expect(heldNow()).rejects.toThrow('SIGKILL');
    expect(kinds()).toEqual([POOL_METADATA_KIND]);
    process.env.PATH = PATH;
    expect(await heldIn(POOL)).not.toBe('-');
    expect(await cleanup()).toEqual([]);
    expect(await heldIn(POOL)).toBe('-');
  });

  it('is read from the device that has it, and from no other of that name', async () => {
    const before = openFiles();
    fs.renameSync(METADATA, `${METADATA}.aside`);
    fs.symlinkSync('/dev/null', METADATA);
    try {
      await expect(heldNow()).rejects.toThrow(`${METADATA} is not the metadata of the thin pool`);
      expect(openFiles()).toEqual(before);
    } finally {
      fs.renameSync(`${METADATA}.aside`, METADATA);
    }
  });

  it('stays held by somebody who came after us', async () => {
    await message('reserve_metadata_snap');
    const held = Number(await heldIn(POOL));
    const entry = journal.intend(POOL_METADATA_KIND, { pool: pool.uuid });
    journal.done(entry, { held: held + 1 });
    expect(await cleanup()).toEqual([]);
    expect(await heldIn(POOL)).toBe(String(held));
    await message('release_metadata_snap');
  });

  it('of a pool that is not active may be held still; of one that is gone it is not', async () => {
    journal.intend(POOL_METADATA_KIND, { pool: pool.uuid });
    await run('lvchange', ['--activate', 'n', `${VOLUME_GROUP}/in-held`, `${VOLUME_GROUP}/${POOL}`]);
    expect(await cleanup()).toEqual([
      expect.stringContaining('is not active: its metadata may still be held'),
    ]);
    await run('lvchange', ['--activate', 'y', `${VOLUME_GROUP}/in-held`, `${VOLUME_GROUP}/${POOL}`]);
    expect(await cleanup()).toEqual([]);
    journal.intend(POOL_METADATA_KIND, { pool: 'gone' });
    expect(await cleanup()).toEqual([]);
  });
});
