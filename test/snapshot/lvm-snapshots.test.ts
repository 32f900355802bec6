import * as fs from 'node:fs';
import * as path from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { adviseKeeping } from '../../src/snapshot/lvm/keep.js';
import { lvmUndo } from '../../src/snapshot/lvm/undo.js';
import { watchLvm } from '../../src/snapshot/lvm/watch.js';
import { Once } from '../../src/snapshot/watch-request.js';
import { LVM_KIND } from '../../src/snapshot/watched-kinds.js';
import { programFirst } from '../support/dumps.js';
import { temporaryDirectory } from '../support/images.js';
import { RecordingReporter } from '../support/snapshot-session.js';

const MIB = 2 ** 20;
const { PATH } = process.env;

let directory: string;
let reporter: RecordingReporter;
let lost: string[];
let once: Once;

beforeEach(() => {
  directory = temporaryDirectory();
  reporter = new RecordingReporter();
  lost = [];
  once = new Once();
});

afterEach(() => {
  process.env.PATH = PATH;
  fs.rmSync(directory, { recursive: true });
});

function install(program: string, script: string): void {
  process.env.PATH = PATH;
  process.env.PATH = programFirst(directory, program, script);
}

type Row = Readonly<Record<string, string>>;

/** What lvs and vgs say from now on. */
function answer(name: 'lv' | 'vg', rows: readonly Row[]): void {
  install(`${name}s`, `cat <<'END'\n${JSON.stringify({ report: [{ [name]: rows }] })}\nEND`);
}

const VOLUME: Row = {
  ...{
    vg_name: 'vg',
    lv_name: 'cm-s-vda',
    lv_uuid: 'mine',
    lv_dm_path: '/dev/mapper/vg-cm',
    lv_size: `${64 * MIB}`,
  },
  ...{
    lv_kernel_major: '253',
    lv_kernel_minor: '1',
    segtype: 'linear',
    lv_role: 'public',
    lv_permissions: 'read-only',
    pool_lv: '',
  },
  ...{
    pool_lv_uuid: '',
    thin_id: '',
    transaction_id: '',
    origin: 'lv',
    origin_uuid: 'origin',
    data_percent: '',
  },
  ...{ snap_percent: '', metadata_percent: '', lv_snapshot_invalid: '' },
};
const THIN: Row = { ...VOLUME, segtype: 'thin', pool_lv: 'pool', pool_lv_uuid: 'pool', thin_id: '2' };
const POOL: Row = { ...VOLUME, lv_name: 'pool', lv_uuid: 'pool', segtype: 'thin-pool' };
const OTHER_POOL: Row = { ...POOL, lv_name: 'another', lv_uuid: 'another', data_percent: '99.00' };

/** A thin snapshot in a pool that is so full. */
function crowded(data: string, metadata: string): void {
  answer('lv', [OTHER_POOL, { ...POOL, data_percent: data, metadata_percent: metadata }, THIN]);
}

/** A thick snapshot that is so full. */
function filled(percent: string, more: Row = {}): void {
  answer('lv', [
    OTHER_POOL,
    {
      ...VOLUME,
      lv_role: 'public,snapshot,thicksnapshot',
      data_percent: percent,
      snap_percent: percent,
      ...more,
    },
  ]);
}

function entry(thin: boolean) {
  const data = { session: 's', target: 'vda', group: 'vg', name: 'cm-s-vda', thin, uuid: 'mine' };
  return { seq: 1, kind: LVM_KIND, data: { ...data, origin: { name: 'lv', uuid: 'origin' } }, done: true };
}

async function watch(thin: boolean, autoExtend = false): Promise<string[]> {
  const { signal } = new AbortController();
  const onLost = (message: string) => lost.push(message);
  await watchLvm(entry(thin), { entries: [], reporter, autoExtend, onLost, signal }, once);
  return reporter.messages.splice(0);
}

describe('who looks after an LVM snapshot', () => {
  it('says once that it was removed', async () => {
    answer('lv', [OTHER_POOL]);
    for (let round = 0; round < 2; round++) expect(await watch(true)).toEqual([]);
    expect(lost).toEqual(['the LVM snapshot vg/cm-s-vda was removed']);
  });

  it('says once for each five percent how full a pool is, its data or its metadata', async () => {
    const said: string[] = [];
    for (const [data, metadata] of [
      ['79.99', '10.00'],
      ['80.00', '10.00'],
      ['84.90', '10.00'],
      ['50.00', '85.00'],
      ['50.00', '85.00'],
      ['100.00', '10.00'],
    ] as const) {
      crowded(data, metadata);
      said.push(...(await watch(true)));
    }
    const told = (percent: number) =>
      `warn: the thin pool vg/pool is ${percent} % full; when it is full, its guests stand still`;
    expect(said).toEqual([80, 85, 100].map(told));
    expect(lost).toEqual([]);
  });

  it('says once for each five percent how full a thick one is, and enlarges it only if that is wanted', async () => {
    const said: string[] = [];
    for (const percent of ['79.99', '80.00', '84.00', '85.00']) {
      filled(percent);
      said.push(...(await watch(false)));
    }
    expect(said).toEqual(
      [80, 85].map((percent) => `warn: the LVM snapshot vg/cm-s-vda is ${percent} % full`),
    );
    filled('100.00', { lv_snapshot_invalid: 'snapshot invalid' });
    for (let round = 0; round < 2; round++) expect(await watch(false, true)).toEqual([]);
    expect(lost).toEqual(['the LVM snapshot vg/cm-s-vda ran full']);
  });

  it('enlarges it by a fifth, or by what the group has left', async () => {
    const calls = path.join(directory, 'calls');
    install('lvextend', `echo "$*" >>'${calls}'`);
    filled('80.00');
    for (const free of [64 * MIB, 4 * MIB]) {
      answer('vg', [{ vg_free: `${free}`, vg_extent_size: `${4 * MIB}` }]);
      expect(await watch(false, true)).toEqual([
        'notice: the LVM snapshot vg/cm-s-vda was nearly full and is larger now',
      ]);
    }
    expect(fs.readFileSync(calls, 'utf8')).toBe(
      `--size +13422080b vg/cm-s-vda\n--size +${4 * MIB}b vg/cm-s-vda\n`,
    );
    answer('vg', [{ vg_free: '0', vg_extent_size: `${4 * MIB}` }]);
    expect(await watch(false, true)).toEqual(['warn: the LVM snapshot vg/cm-s-vda is 80 % full']);
    expect(fs.readFileSync(calls, 'utf8').split('\n')).toHaveLength(3);
  });

  it('says once that LVM does not enlarge it, and how full it is', async () => {
    install('lvextend', 'echo no such luck >&2; exit 5');
    answer('vg', [{ vg_free: `${64 * MIB}`, vg_extent_size: `${4 * MIB}` }]);
    filled('80.00');
    expect(await watch(false, true)).toEqual([
      'warn: the LVM snapshot vg/cm-s-vda cannot be enlarged: lvextend failed: no such luck',
      'warn: the LVM snapshot vg/cm-s-vda is 80 % full',
    ]);
    expect(await watch(false, true)).toEqual([]);
  });
});

describe('a snapshot that is to stay', () => {
  it.each([
    ['79.99', '10.00', undefined],
    ['80.00', '10.00', false],
    ['90.00', '10.00', false],
    ['90.01', '10.00', true],
    ['10.00', '90.01', true],
    // It is not active, so nobody knows.
    ['', '', true],
  ] as const)('in a pool that is full to "%s" and "%s" %%', async (data, metadata, refused) => {
    crowded(data, metadata);
    const advice = await adviseKeeping(entry(true));
    expect(advice?.refused).toBe(refused);
    if (refused !== undefined) expect(advice!.message).toMatch(/^the thin pool vg\/pool is [0-9.]+ % full/);
  });

  it('in no pool, or gone, is nothing to speak of', async () => {
    filled('99.00');
    expect(await adviseKeeping(entry(false))).toBeUndefined();
    answer('lv', [OTHER_POOL]);
    expect(await adviseKeeping(entry(true))).toBeUndefined();
  });
});

describe('an LVM snapshot that cannot be removed at once', () => {
  it('is tried again', async () => {
    filled('10.00');
    const tried = path.join(directory, 'tried');
    install('lvremove', `[ ! -e '${tried}' ] || exit 0; : >'${tried}'; exit 5`);
    await lvmUndo[LVM_KIND](entry(false), { journal: undefined as never, reporter });
    expect(fs.existsSync(tried)).toBe(true);
  });
});
