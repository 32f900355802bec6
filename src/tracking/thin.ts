import * as fs from 'node:fs';
import * as v from 'valibot';
import { failed, messageOf } from '../errors.js';
import { requireProgram } from '../host/command-error.js';
import { deviceNumber } from '../host/device-number.js';
import type { ByteRange } from '../image/own-ranges.js';
import { BRIEF_SECONDS } from '../session/lock.js';
import {
  deviceWithPool,
  type LogicalVolume,
  mapperUuid,
  volumeByUuid,
} from '../snapshot/lvm/logical-volume.js';
import { whileHoldingMetadata } from '../snapshot/lvm/metadata.js';
import { isWithin } from '../snapshot/lvm/pool.js';
import { readLvmRecord } from '../snapshot/lvm/undo.js';
import { LVM_KIND } from '../snapshot/watched-kinds.js';
import { thinDelta } from './thin-delta.js';
import type { Changes, Comparing, Facts, Observation, TrackedDisk, Tracker } from './tracker.js';

const Count = v.pipe(v.number(), v.safeInteger(), v.minValue(0));

const Thin = v.object({
  uuid: v.string(),
  /** What the pool calls it. */
  thinId: Count,
  /** When it was made, counted in changes of the pool. */
  transaction: Count,
});

const FactsSchema = v.object({
  pool: v.object({ uuid: v.string(), group: v.string(), name: v.string(), transaction: Count }),
  origin: Thin,
  snapshot: v.object({ ...Thin.entries, device: v.string() }),
  /** Bytes. */
  size: Count,
});

type ThinFacts = v.InferOutput<typeof FactsSchema>;

/** Programs without which nothing can be compared. */
const PROGRAMS = ['thin_delta', 'dmsetup'];

/** How long a comparison may take, and how long it waits for others of the same pool. */
export interface Patience {
  readonly timeoutMs: number;
  readonly waitSeconds: number;
}

/** All mappings of both volumes are read, of many terabytes maybe, from a slow disk. Others, who are waited for, do the same. */
const IN_SESSION: Patience = { timeoutMs: 1_800_000, waitSeconds: 1800 };

/** Of `estimate`, for which sessions wait that long, and no longer: it asks what is mapped, then what changed, and a third is for the rest. */
const IN_ESTIMATE: Patience = { timeoutMs: (BRIEF_SECONDS * 1000) / 3, waitSeconds: 0 };

function none(reason: string): Observation {
  return { kind: 'none', reason };
}

/** Throws if it is no thin volume. */
function thinOf({ uuid, thinId, transaction, group, name }: LogicalVolume): v.InferOutput<typeof Thin> {
  if (thinId === undefined || transaction === undefined) throw failed(`${group}/${name} is no thin volume`);
  return { uuid, thinId, transaction };
}

/** `estimate`: nothing freezes the volume, to which a VM goes on writing. */
export function isLive({ snapshot, live }: Pick<TrackedDisk, 'snapshot' | 'live'>): boolean {
  return snapshot === undefined && live !== undefined;
}

export function patienceWith(disk: Pick<TrackedDisk, 'snapshot' | 'live'>): Patience {
  return isLive(disk) ? IN_ESTIMATE : IN_SESSION;
}

/** Why the blocks of its volume do not tell of the disk; undefined if they do. */
export function thinObstacle(disk: Pick<TrackedDisk, 'snapshot' | 'layers' | 'live'>): string | undefined {
  const { snapshot, layers } = disk;
  if (snapshot?.kind !== LVM_KIND && !isLive(disk)) return 'no LVM snapshot freezes it';
  const [image, ...backing] = layers;
  if (image?.format !== 'raw' || !image.device || backing.length > 0 || image.dataFile !== undefined)
    return 'its image is not the volume itself, but lies in it';
  if (snapshot !== undefined && !readLvmRecord(snapshot).thin) return 'it is on a thick volume';
  for (const program of PROGRAMS) requireProgram(program);
  return undefined;
}

/** Has the kernel write out what it has in memory of a device (QEMU's cache=writeback): before that its pool knows nothing of it. */
async function writeOut(device: string): Promise<void> {
  const file = await fs.promises.open(device, 'r');
  try {
    await file.sync();
  } finally {
    await file.close();
  }
}

/** For `estimate`: does what can take long, and `observe` does again, before it makes others wait. */
export async function prepareLive(disk: Pick<TrackedDisk, 'snapshot' | 'layers' | 'live'>): Promise<void> {
  try {
    if (isLive(disk) && thinObstacle(disk) === undefined) await writeOut(disk.layers[0]!.path);
  } catch {
    // `observe` says why.
  }
}

async function observe(disk: TrackedDisk): Promise<Observation> {
  try {
    const reason = thinObstacle(disk);
    if (reason !== undefined) return none(reason);
    const live = isLive(disk);
    const record = live ? undefined : readLvmRecord(disk.snapshot!);
    const device = disk.layers[0]!.path;
    const found = await deviceWithPool(device, { others: record === undefined ? [] : [record.origin.uuid] });
    if (found === undefined || (record !== undefined && found.volume.uuid !== record.uuid))
      return none(`${device} is not its ${live ? 'volume' : 'snapshot'}`);
    const { volume: snapshot, pool, others } = found;
    if (live) await writeOut(device);
    if (record !== undefined && (snapshot.originUuid ?? record.origin.uuid) !== record.origin.uuid)
      return none('its snapshot is one of another volume');
    const origin = live ? snapshot : others.find(({ uuid }) => uuid === snapshot.originUuid);
    if (origin === undefined || pool === undefined) throw failed('its volume or thin pool is gone');
    const { uuid, group, name, transaction = 0 } = pool;
    const facts: ThinFacts = {
      pool: { uuid, group, name, transaction },
      origin: thinOf(origin),
      snapshot: { ...thinOf(snapshot), device },
      size: snapshot.size,
    };
    return { kind: 'facts', facts, lasting: disk.keep && !live };
  } catch (error) {
    return none(messageOf(error));
  }
}

function whyUnknown(before: ThinFacts, now: ThinFacts): string | undefined {
  if (before.pool.uuid !== now.pool.uuid) return 'the volume is in another thin pool';
  // Each snapshot counts, but there is none of a live volume.
  const least = before.pool.transaction + (now.snapshot.uuid === now.origin.uuid ? 0 : 1);
  if (now.pool.transaction < least) return 'the thin pool was set back';
  if (before.origin.uuid !== now.origin.uuid) return 'it is another volume';
  if (before.origin.thinId !== now.origin.thinId || before.origin.transaction !== now.origin.transaction)
    return 'the volume was set back to a snapshot (lvconvert --merge)';
  if (before.size !== now.size) return 'the volume was resized';
  return undefined;
}

/** Why the snapshot that was kept is not what it was. */
async function keptObstacle({ snapshot, pool, origin, size }: ThinFacts): Promise<string | undefined> {
  const found = await volumeByUuid(snapshot.uuid);
  if (found === undefined) return 'the snapshot of the last session is gone';
  if (found.thinId !== snapshot.thinId || found.transaction !== snapshot.transaction)
    return 'the snapshot of the last session was replaced';
  if (found.poolUuid !== pool.uuid || found.originUuid !== origin.uuid || found.size !== size)
    return 'the snapshot of the last session is one of another volume';
  return found.readOnly ? undefined : 'the snapshot of the last session may have been written';
}

/** Asks the pool. Throws where anything is odd. */
async function compare(
  before: ThinFacts,
  now: ThinFacts,
  { disk, journal, signal }: Comparing,
): Promise<readonly ByteRange[]> {
  if (journal === undefined) throw failed('only in a session may it hold the metadata of the thin pool');
  const number = deviceNumber(fs.statSync(now.snapshot.device, { bigint: true }).rdev);
  const { timeoutMs, waitSeconds } = patienceWith(disk);
  const holding = { journal, waitSeconds, signal };
  const ranges = await whileHoldingMetadata(now.pool, holding, async (device, pool) => {
    if (!(await isWithin(number, pool, now.snapshot.thinId)))
      throw failed('a part of the volume lies outside of its thin pool');
    const ids = { left: before.snapshot.thinId, right: now.snapshot.thinId };
    return thinDelta(device, { ...ids, blockSize: pool.blockSize }, { timeoutMs, signal });
  });
  return ranges.flatMap(({ start, end }) =>
    start < now.size ? [{ start, end: Math.min(end, now.size) }] : [],
  );
}

async function changesSince(before: Facts, now: Facts, comparing: Comparing): Promise<Changes> {
  const parsed = v.safeParse(FactsSchema, before);
  if (!parsed.success) return { kind: 'unknown', reason: 'what it knew of the last session is damaged' };
  try {
    const current = v.parse(FactsSchema, now);
    const reason = whyUnknown(parsed.output, current) ?? (await keptObstacle(parsed.output));
    if (reason !== undefined) return { kind: 'unknown', reason };
    return { kind: 'known', ranges: await compare(parsed.output, current, comparing) };
  } catch (error) {
    comparing.signal?.throwIfAborted();
    return { kind: 'unknown', reason: messageOf(error) };
  }
}

/** The device is that snapshot's still: it was not removed under the daemon. */
function stillHolds(facts: Facts): boolean {
  try {
    const { uuid, device } = v.parse(FactsSchema, facts).snapshot;
    const number = deviceNumber(fs.statSync(device, { bigint: true }).rdev);
    return mapperUuid(number)?.endsWith(uuid.replaceAll('-', '')) === true;
  } catch {
    return false;
  }
}

/** A thin volume, of which the snapshot of the last session was kept: the pool knows in which of its blocks the two differ. */
export const thinTracker: Tracker = { kind: 'thin', observe, changesSince, stillHolds };
