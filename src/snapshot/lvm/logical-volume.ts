import * as fs from 'node:fs';
import * as v from 'valibot';
import { failed } from '../../errors.js';
import { type DeviceNumber, deviceNumber } from '../../host/device-number.js';
import { readIfExists } from '../../host/durable.js';
import { type RunResult, run } from '../../host/exec.js';
import type { Reporter } from '../../report/reporter.js';

/** What LVM is asked. It waits for its own locks; another LVM command may run for long. */
const LVM_TIMEOUT_MS = 60_000;
/** What LVM is to change: it is ended only while it waits for a lock, so there is no hurry. */
const CHANGE_TIMEOUT_MS = 3_600_000;
/** From then on the user is told what is waited for. */
const CHANGE_SLOW_MS = 20_000;

/** Marks what is ours in `lvs -o +lv_tags`, for people; what may be removed the journal says. */
const LVM_TAG = 'chunkmount';

/** lvm2's exit code for a command that could not do what was asked: ECMD_FAILED of lib/commands/errors.h. */
const LVM_FAILED = 5;

export interface LogicalVolume {
  readonly group: string;
  readonly name: string;
  readonly uuid: string;
  /** `/dev/mapper/…`. */
  readonly device: string;
  /** The device's number; -1:-1 if it is not active. */
  readonly kernel: DeviceNumber;
  /** `linear`, `thin`, `raid1`, …; of a thick snapshot it is that of its own blocks. */
  readonly segment: string;
  readonly thickSnapshot: boolean;
  /** Bytes. */
  readonly size: number;
  readonly readOnly: boolean;
  /** The thin pool that a thin volume is in. */
  readonly pool: string | undefined;
  readonly poolUuid: string | undefined;
  /** What the pool calls a thin volume: the number of its mappings. They are another volume's after `lvconvert --merge`. */
  readonly thinId: number | undefined;
  /** How often volumes of a thin pool were made or removed; of a thin volume: when it was made, counted so. */
  readonly transaction: number | undefined;
  /** The volume that a snapshot was made of. */
  readonly origin: string | undefined;
  readonly originUuid: string | undefined;
  /** How full a thick snapshot or a pool is; undefined if it is neither or not active. */
  readonly usedPercent: number | undefined;
  readonly metadataPercent: number | undefined;
  /** A thick snapshot that overflowed: its content is gone. */
  readonly invalid: boolean;
}

const COLUMNS = [
  'vg_name',
  'lv_name',
  'lv_uuid',
  'lv_dm_path',
  'lv_kernel_major',
  'lv_kernel_minor',
  'segtype',
  'lv_role',
  'lv_size',
  'lv_permissions',
  'pool_lv',
  'pool_lv_uuid',
  'thin_id',
  'transaction_id',
  'origin',
  'origin_uuid',
  'data_percent',
  'snap_percent',
  'metadata_percent',
  'lv_snapshot_invalid',
] as const;

const row = v.object(v.entriesFromList(COLUMNS, v.string()));
const report = v.object({ report: v.array(v.object({ lv: v.array(row) })) });
const groupRow = v.object({ vg_free: v.string(), vg_extent_size: v.string() });
const groups = v.object({ report: v.array(v.object({ vg: v.array(groupRow) })) });

const FORMAT = ['--reportformat', 'json', '--units', 'b', '--nosuffix'];

function number(text: string): number | undefined {
  return text === '' ? undefined : Number(text);
}

function given(text: string): string | undefined {
  return text === '' ? undefined : text;
}

function parse(text: v.InferOutput<typeof row>): LogicalVolume {
  return {
    group: text.vg_name,
    name: text.lv_name,
    uuid: text.lv_uuid,
    device: text.lv_dm_path,
    kernel: { major: Number(text.lv_kernel_major), minor: Number(text.lv_kernel_minor) },
    segment: text.segtype,
    thickSnapshot: text.lv_role.split(',').includes('thicksnapshot'),
    size: Number(text.lv_size),
    readOnly: text.lv_permissions === 'read-only',
    pool: given(text.pool_lv),
    poolUuid: given(text.pool_lv_uuid),
    thinId: number(text.thin_id),
    transaction: number(text.transaction_id),
    origin: given(text.origin),
    originUuid: given(text.origin_uuid),
    usedPercent: number(text.snap_percent === '' ? text.data_percent : text.snap_percent),
    metadataPercent: number(text.metadata_percent),
    invalid: text.lv_snapshot_invalid === 'snapshot invalid',
  };
}

async function select(condition: string, signal?: AbortSignal): Promise<LogicalVolume[]> {
  const args = [...FORMAT, '--all', '-o', COLUMNS.join(','), '--select', condition];
  const { stdout } = await run('lvs', args, { timeoutMs: LVM_TIMEOUT_MS, signal });
  return v.parse(report, JSON.parse(stdout)).report.flatMap(({ lv }) => lv.map(parse));
}

function conditionFor({ major, minor }: DeviceNumber): string {
  return `lv_kernel_major=${major} && lv_kernel_minor=${minor}`;
}

/** Undefined if it is no block device, or none of LVM's. */
function mapperDevice(path: string): DeviceNumber | undefined {
  const stat = fs.statSync(path, { throwIfNoEntry: false, bigint: true });
  if (stat?.isBlockDevice() !== true) return undefined;
  const device = deviceNumber(stat.rdev);
  return mapperUuid(device)?.startsWith('LVM-') === true ? device : undefined;
}

/** The logical volume behind a block device, whatever name it was opened by; undefined if it is none. */
export async function volumeOfDevice(path: string, signal?: AbortSignal): Promise<LogicalVolume | undefined> {
  const device = mapperDevice(path);
  return device === undefined ? undefined : (await select(conditionFor(device), signal))[0];
}

/** A volume and what belongs to it, by one question: for each, lvs looks at all devices of the host. */
export interface VolumeWithPool {
  readonly volume: LogicalVolume;
  /** The thin pool that it is in. */
  readonly pool: LogicalVolume | undefined;
  /** Those of the others that were asked for that there are. */
  readonly others: readonly LogicalVolume[];
}

async function selectWithPool(
  condition: string,
  isIt: (volume: LogicalVolume) => boolean,
  others: readonly string[],
  signal: AbortSignal | undefined,
): Promise<VolumeWithPool | undefined> {
  const also = others.map((uuid) => ` || lv_uuid=${JSON.stringify(uuid)}`).join('');
  const found = await select(`(${condition}) || segtype=thin-pool${also}`, signal);
  const volume = found.find(isIt);
  if (volume === undefined) return undefined;
  const pool = found.find(({ uuid }) => uuid === volume.poolUuid);
  return { volume, pool, others: found.filter(({ uuid }) => others.includes(uuid)) };
}

/** As `volumeOfDevice`, with its pool and other volumes. */
export async function deviceWithPool(
  path: string,
  { others = [], signal }: { others?: readonly string[]; signal?: AbortSignal | undefined } = {},
): Promise<VolumeWithPool | undefined> {
  const device = mapperDevice(path);
  if (device === undefined) return undefined;
  const isIt = ({ kernel: { major, minor } }: LogicalVolume) =>
    major === device.major && minor === device.minor;
  return selectWithPool(conditionFor(device), isIt, others, signal);
}

/** As `volumeByUuid`, with its pool. */
export function volumeWithPool(uuid: string, signal?: AbortSignal): Promise<VolumeWithPool | undefined> {
  return selectWithPool(`lv_uuid=${JSON.stringify(uuid)}`, (volume) => volume.uuid === uuid, [], signal);
}

/** What device-mapper has as UUID of a device; undefined if it is none of its own. */
export function mapperUuid({ major, minor }: DeviceNumber): string | undefined {
  return readIfExists(`/sys/dev/block/${major}:${minor}/dm/uuid`)?.trim();
}

/** The volume with that UUID, whatever its name is by now; undefined if there is none. */
export async function volumeByUuid(uuid: string, signal?: AbortSignal): Promise<LogicalVolume | undefined> {
  return (await select(`lv_uuid=${JSON.stringify(uuid)}`, signal))[0];
}

/** The volume of that name, undefined if there is none. */
export async function volumeByName(
  group: string,
  name: string,
  signal?: AbortSignal,
): Promise<LogicalVolume | undefined> {
  return (await select(`vg_name=${JSON.stringify(group)} && lv_name=${JSON.stringify(name)}`, signal))[0];
}

/** In bytes. */
export interface GroupSpace {
  readonly free: number;
  readonly extentSize: number;
}

export async function spaceInGroup(group: string, signal?: AbortSignal): Promise<GroupSpace> {
  const args = [...FORMAT, '-o', 'vg_free,vg_extent_size', '--select', `vg_name=${JSON.stringify(group)}`];
  const { stdout } = await run('vgs', args, { timeoutMs: LVM_TIMEOUT_MS, signal });
  const [found] = v.parse(groups, JSON.parse(stdout)).report.flatMap(({ vg }) => vg);
  if (found === undefined) throw failed(`there is no volume group ${group}`);
  return { free: Number(found.vg_free), extentSize: Number(found.vg_extent_size) };
}

export interface ChangeOptions {
  /** Ends nothing that has begun, but what follows it. */
  readonly signal?: AbortSignal | undefined;
  readonly reporter?: Reporter | undefined;
}

/**
 * Runs a command of LVM that changes volumes. To do so it suspends them: killed before it resumes them, it would leave whoever
 * writes there, the VM, standing still. LVM puts off SIGTERM while it holds the lock of a group (block_signals in lib/misc/lvm-signal.c).
 */
async function change(
  program: string,
  args: readonly string[],
  { signal, reporter }: ChangeOptions,
  accept: readonly number[] = [],
): Promise<RunResult> {
  signal?.throwIfAborted();
  const slow = setTimeout(() => {
    reporter?.notice(`${program} takes long; it is waited for, because the VM might stand still without it`);
  }, CHANGE_SLOW_MS);
  try {
    const result = await run(program, args, { timeoutMs: CHANGE_TIMEOUT_MS, toItsEnd: true, accept });
    signal?.throwIfAborted();
    return result;
  } finally {
    clearTimeout(slow);
  }
}

export interface NewSnapshot extends ChangeOptions {
  readonly origin: LogicalVolume;
  readonly name: string;
}

const COMMON = ['--snapshot', '--permission', 'r', '--addtag', LVM_TAG, '--yes'];

/** Makes a read-only thick snapshot. `size`: arguments of lvcreate that say how large. */
export async function createThick(
  { origin, name, ...options }: NewSnapshot,
  size: readonly string[],
  chunkKib: number,
): Promise<void> {
  const args = [
    ...COMMON,
    '--chunksize',
    `${chunkKib}k`,
    ...size,
    '--name',
    name,
    `${origin.group}/${origin.name}`,
  ];
  await change('lvcreate', args, options);
}

/** Makes a read-only thin snapshot. Without the last two options it would have no device. */
export async function createThin({ origin, name, ...options }: NewSnapshot): Promise<void> {
  const activate = ['--setactivationskip', 'n', '--activate', 'y'];
  const args = [...COMMON, ...activate, '--name', name, `${origin.group}/${origin.name}`];
  await change('lvcreate', args, options);
}

/** Enlarges a thick snapshot. */
export async function extend(volume: LogicalVolume, bytes: number, signal?: AbortSignal): Promise<void> {
  const args = ['--size', `+${bytes}b`, `${volume.group}/${volume.name}`];
  signal?.throwIfAborted();
  await change('lvextend', args, {});
}

/** Removes the volume with that very UUID. Returns false if LVM refuses, as it does while somebody has it open. */
export async function remove(volume: LogicalVolume): Promise<boolean> {
  const args = ['--yes', '--select', `lv_uuid=${volume.uuid}`, volume.group];
  return (await change('lvremove', args, {}, [LVM_FAILED])).exitCode === 0;
}
