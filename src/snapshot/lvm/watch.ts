import { messageOf } from '../../errors.js';
import type { JournalEntry } from '../../session/journal.js';
import type { Once, WatchRequest } from '../watch-request.js';
import {
  extend,
  type LogicalVolume,
  spaceInGroup,
  type VolumeWithPool,
  volumeWithPool,
} from './logical-volume.js';
import { findLvmSnapshot, readLvmRecord } from './undo.js';

/** From here on a thick snapshot or a pool is nearly full: as in LVM's own snapshot_autoextend_threshold example. */
const NEARLY_FULL_PERCENT = 80;
/** Sizes must be multiples of it; LVM rounds up to the extents of the group. */
const SECTOR = 512;
/** LVM's own snapshot_autoextend_percent. */
const EXTEND_PERCENT = 20;
async function enlarge(snapshot: LogicalVolume, { reporter, signal }: WatchRequest): Promise<boolean> {
  const wanted = Math.ceil((snapshot.size * EXTEND_PERCENT) / 100 / SECTOR) * SECTOR;
  const bytes = Math.min(wanted, (await spaceInGroup(snapshot.group, signal)).free);
  if (bytes <= 0) return false;
  await extend(snapshot, bytes, signal);
  reporter.notice(`the LVM snapshot ${snapshot.group}/${snapshot.name} was nearly full and is larger now`);
  return true;
}

async function watchThick(snapshot: LogicalVolume, request: WatchRequest, once: Once): Promise<void> {
  const name = `${snapshot.group}/${snapshot.name}`;
  if (snapshot.invalid) {
    once.do(`${name} invalid`, () => request.onLost(`the LVM snapshot ${name} ran full`));
    return;
  }
  const used = snapshot.usedPercent ?? 0;
  if (used < NEARLY_FULL_PERCENT) return;
  const enlarged =
    request.autoExtend &&
    (await enlarge(snapshot, request).catch((error: unknown) => {
      once.do(`${name} extend`, () =>
        request.reporter.warn(`the LVM snapshot ${name} cannot be enlarged: ${messageOf(error)}`),
      );
      return false;
    }));
  if (enlarged) return;
  const step = Math.floor(used / 5) * 5;
  once.do(`${name} ${step}`, () => request.reporter.warn(`the LVM snapshot ${name} is ${used} % full`));
}

function watchPool({ volume: snapshot, pool }: VolumeWithPool, { reporter }: WatchRequest, once: Once): void {
  const used = Math.max(pool?.usedPercent ?? 0, pool?.metadataPercent ?? 0);
  if (used < NEARLY_FULL_PERCENT) return;
  const step = Math.floor(used / 5) * 5;
  once.do(`${snapshot.pool} ${step}`, () =>
    reporter.warn(
      `the thin pool ${snapshot.group}/${snapshot.pool} is ${used} % full; when it is full, its guests stand still`,
    ),
  );
}

/** Looks after one LVM snapshot, once. */
export async function watchLvm(entry: JournalEntry, request: WatchRequest, once: Once): Promise<void> {
  const record = readLvmRecord(entry);
  const { uuid = (await findLvmSnapshot(record))?.uuid } = record;
  const found = uuid === undefined ? undefined : await volumeWithPool(uuid, request.signal);
  if (found === undefined) {
    once.do(`${record.name} gone`, () =>
      request.onLost(`the LVM snapshot ${record.group}/${record.name} was removed`),
    );
    return;
  }
  if (record.thin) watchPool(found, request, once);
  else await watchThick(found.volume, request, once);
}
