import * as fs from 'node:fs';
import { failed } from '../../errors.js';
import type { DeviceNumber } from '../../host/device-number.js';
import { readIfExists } from '../../host/durable.js';
import { run } from '../../host/exec.js';

/** Its metadata is committed first, which waits for the disk. */
const DMSETUP_TIMEOUT_MS = 60_000;

/** What the kernel counts in. */
const SECTOR = 512;

/** A thin pool as device-mapper has it. */
export interface ActivePool {
  readonly device: DeviceNumber;
  /** Of the metadata. */
  readonly metadata: DeviceNumber;
  /** Bytes. */
  readonly blockSize: number;
}

export interface PoolStatus {
  /** Block of the metadata snapshot that somebody has reserved: there is one at most. */
  readonly held: number | undefined;
  /** Neither out of space, nor read-only, nor in need of a repair. */
  readonly sound: boolean;
}

/** A line of the kernel's about one device. */
async function dmsetup(
  { major, minor }: DeviceNumber,
  command: string,
  args: readonly string[] = [],
): Promise<string> {
  const all = [command, '--major', String(major), '--minor', String(minor), ...args];
  const { stdout } = await run('dmsetup', all, {
    timeoutMs: DMSETUP_TIMEOUT_MS,
    called: `dmsetup ${command}`,
  });
  return stdout.trim();
}

function match(line: string, pattern: RegExp): string[] {
  const found = pattern.exec(line);
  if (found === null) throw failed(`device-mapper describes a thin pool in an unknown way: ${line}`);
  return found.slice(1);
}

/** As in the kernel's thin-provisioning.rst: begin, length, target, metadata device, data device, sectors of a block, … */
const POOL_TABLE = /^0 \d+ thin-pool (\d+):(\d+) \d+:\d+ (\d+) /;
/** … transaction, used and all blocks of metadata and data, held metadata root, options of which two matter. */
const POOL_STATUS = /^0 \d+ thin-pool \d+ \d+\/\d+ \d+\/\d+ (\d+|-) (\S+) \S+ \S+ (\S+)/;
/** … pool device, number in the pool; a volume of an external origin has one thing more. */
const THIN_TABLE = /^0 \d+ thin (\d+):(\d+) (\d+)( \S+)?$/;

/** … sectors that are mapped, the last of them. */
const THIN_STATUS = /^0 \d+ thin (\d+) (\d+|-)$/;

/** The pool with that UUID; undefined unless it is active. The device that has the pool is no volume: LVM marks it so in its UUID. */
export async function activePool(uuid: string): Promise<ActivePool | undefined> {
  const end = `${uuid.replaceAll('-', '')}-tpool`;
  const found = fs.readdirSync('/sys/class/block').find((name) => {
    const text = readIfExists(`/sys/class/block/${name}/dm/uuid`)?.trim();
    return text?.startsWith('LVM-') === true && text.endsWith(end);
  });
  if (found === undefined) return undefined;
  const [major, minor] = match(
    fs.readFileSync(`/sys/class/block/${found}/dev`, 'utf8').trim(),
    /^(\d+):(\d+)$/,
  );
  const device = { major: Number(major), minor: Number(minor) };
  const table = match(await dmsetup(device, 'table'), POOL_TABLE).map(Number);
  return { device, metadata: { major: table[0]!, minor: table[1]! }, blockSize: table[2]! * SECTOR };
}

export async function poolStatus({ device }: ActivePool): Promise<PoolStatus> {
  const [held, mode, check] = match(await dmsetup(device, 'status', ['--noflush']), POOL_STATUS);
  return { held: held === '-' ? undefined : Number(held), sound: mode === 'rw' && check === '-' };
}

/** Freezes the pool's metadata as it is, for programs to read beside the kernel. Fails if somebody has done so. */
export async function reserveMetadata({ device }: ActivePool): Promise<void> {
  await dmsetup(device, 'message', ['0', 'reserve_metadata_snap']);
}

export async function releaseMetadata({ device }: ActivePool): Promise<void> {
  await dmsetup(device, 'message', ['0', 'release_metadata_snap']);
}

/** Whether an active thin volume is that one of the pool, and reads nothing from outside of it. */
export async function isWithin(volume: DeviceNumber, pool: ActivePool, thinId: number): Promise<boolean> {
  const [major, minor, id, external] = match(await dmsetup(volume, 'table'), THIN_TABLE);
  const { device } = pool;
  return (
    Number(major) === device.major &&
    Number(minor) === device.minor &&
    Number(id) === thinId &&
    external === undefined
  );
}

/** What a thin volume has blocks for, in bytes. */
export interface Mapped {
  readonly bytes: number;
  /** Behind the last of them; 0 if there is none. */
  readonly end: number;
}

/** What the kernel counts of an active thin volume; nothing is written for that, as reading the pool's metadata needs. */
export async function mappedIn(volume: DeviceNumber): Promise<Mapped> {
  const [sectors, last] = match(await dmsetup(volume, 'status', ['--noflush']), THIN_STATUS);
  return { bytes: Number(sectors) * SECTOR, end: last === '-' ? 0 : (Number(last) + 1) * SECTOR };
}
