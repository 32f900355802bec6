import * as fs from 'node:fs';
import { failed, messageOf } from '../errors.js';
import { deviceNumber } from '../host/device-number.js';
import type { ExtentMap } from '../image/extent-map.js';
import type { ImageLayer } from '../image/image-layer.js';
import { zerosOutside } from '../image/known-zeros.js';
import type { ByteRange } from '../image/own-ranges.js';
import { volumeOfDevice } from '../snapshot/lvm/logical-volume.js';
import { whileHoldingMetadata } from '../snapshot/lvm/metadata.js';
import { activePool, isWithin, mappedIn } from '../snapshot/lvm/pool.js';
import { readLvmRecord } from '../snapshot/lvm/undo.js';
import { isLive, patienceWith, thinObstacle } from './thin.js';
import { thinMappings } from './thin-delta.js';
import type { Comparing, TrackedDisk } from './tracker.js';

/** With less of a volume unmapped, reading its mappings may take longer than reading zeros. */
const WORTHWHILE = 0.05;

type Disk = Pick<TrackedDisk, 'target' | 'layers' | 'extents' | 'snapshot' | 'live'>;

/** What the pool has blocks for of the snapshot that freezes the disk, or of the live volume. Throws where it cannot be told, or is not worth it. */
async function mappedRanges(
  disk: Disk,
  { journal, signal }: Omit<Comparing, 'disk'>,
): Promise<readonly ByteRange[]> {
  const { snapshot, layers, extents } = disk;
  const live = isLive(disk);
  const obstacle = thinObstacle(disk);
  if (obstacle !== undefined) throw failed(obstacle);
  if (journal === undefined) throw failed('only in a session may it hold the metadata of the thin pool');
  const path = layers[0]!.path;
  const number = deviceNumber(fs.statSync(path, { bigint: true }).rdev);
  // Nothing writes a snapshot, so what is said of it at different times is of one state.
  const counted = await mappedIn(number);
  if (counted.bytes > (1 - WORTHWHILE) * extents.size) throw failed('nearly all of it is mapped');
  const volume = await volumeOfDevice(path, signal);
  if (volume === undefined) throw failed(`${path} is no logical volume`);
  if (!live && (volume.uuid !== readLvmRecord(snapshot!).uuid || !volume.readOnly))
    throw failed(`${path} is not its snapshot`);
  if (volume.size !== extents.size) throw failed(`${path} has another size than LVM says`);
  const { thinId, group, pool: name, poolUuid: uuid } = volume;
  if (thinId === undefined || name === undefined || uuid === undefined)
    throw failed(`${path} is no thin volume`);
  const { timeoutMs, waitSeconds } = patienceWith(disk);
  const { ranges, mapped } = await whileHoldingMetadata(
    { group, name, uuid },
    { journal, waitSeconds, signal },
    async (device, active) => {
      if (!(await isWithin(number, active, thinId)))
        throw failed('a part of the volume lies outside of its thin pool');
      const request = { volume: thinId, blockSize: active.blockSize };
      return thinMappings(device, request, { timeoutMs, signal });
    },
  );
  // A mapping that was missed would be a hole in the backup.
  if (!live && (mapped.bytes !== counted.bytes || mapped.end !== counted.end))
    throw failed(
      `thin_delta told ${mapped.bytes} bytes up to ${mapped.end}, the kernel ${counted.bytes} up to ${counted.end}`,
    );
  return ranges;
}

/**
 * Bytes of a disk that its thin pool has blocks for, as the kernel counts them: nothing is changed for that. Undefined if it is none of a
 * thin pool's.
 */
export async function mappedBytes([image, ...backing]: readonly ImageLayer[]): Promise<number | undefined> {
  if (image?.format !== 'raw' || !image.device || backing.length > 0) return undefined;
  try {
    const volume = await volumeOfDevice(image.path);
    const pool = volume?.poolUuid === undefined ? undefined : await activePool(volume.poolUuid);
    if (pool === undefined || volume?.thinId === undefined) return undefined;
    const number = deviceNumber(fs.statSync(image.path, { bigint: true }).rdev);
    return (await isWithin(number, pool, volume.thinId)) ? (await mappedIn(number)).bytes : undefined;
  } catch {
    return undefined;
  }
}

/**
 * The extents of a disk that a thin snapshot freezes, but that what the pool has no block for is zeros. The device itself tells of no
 * holes: all of a large disk with little on it would be read. Where anything is odd that is what they say. Of a live volume they are no more
 * than an estimate.
 */
export async function withoutUnmapped(disk: Disk, given: Omit<Comparing, 'disk'>): Promise<ExtentMap> {
  const { reporter, signal } = given;
  try {
    const extents = zerosOutside(disk.extents, await mappedRanges(disk, given));
    reporter.debug(
      `disk ${disk.target}: its thin pool has ${extents.dataBytes} bytes of it, in ${extents.count} extents`,
    );
    return extents;
  } catch (error) {
    signal?.throwIfAborted();
    reporter.debug(`disk ${disk.target}: unmapped blocks are read, too: ${messageOf(error)}`);
    return disk.extents;
  }
}
