import * as v from 'valibot';
import { failed } from '../../errors.js';
import type { JournalEntry } from '../../session/journal.js';
import type { UndoHandler } from '../../session/undo.js';
import { LVM_KIND } from '../watched-kinds.js';
import { type LogicalVolume, remove, volumeByName, volumeByUuid } from './logical-volume.js';
import { metadataUndo } from './metadata.js';

/** A reader that has just ended may keep the device open for a moment, as udev does. */
const BUSY_TIMEOUT_MS = 10_000;
const BUSY_POLL_MS = 250;

const lvmRecord = v.object({
  /** Id of the session that made it. */
  session: v.string(),
  target: v.string(),
  group: v.string(),
  name: v.string(),
  origin: v.object({ name: v.string(), uuid: v.string() }),
  thin: v.boolean(),
  /** The snapshot's own, once it has been made. */
  uuid: v.optional(v.string()),
});

export type LvmRecord = v.InferOutput<typeof lvmRecord>;

/** The record of an `lvm-snapshot` entry. Throws if the journal holds something else. */
export function readLvmRecord(entry: JournalEntry): LvmRecord {
  return v.parse(lvmRecord, entry.data);
}

/**
 * The snapshot that a record speaks of, undefined if it is not there. One that is known to have been made goes by its UUID alone: it may have
 * been renamed since, and its origin, too, which LVM forgets when another snapshot is merged into it. Throws if the name of one of
 * which no more is known is somebody else's.
 */
export async function findLvmSnapshot(record: LvmRecord): Promise<LogicalVolume | undefined> {
  if (record.uuid !== undefined) return volumeByUuid(record.uuid);
  const volume = await volumeByName(record.group, record.name);
  if (volume === undefined || volume.originUuid === record.origin.uuid) return volume;
  throw failed(`${record.group}/${record.name} is not the snapshot that was made of ${record.origin.name}`, {
    hint: 'somebody made another volume of that name: rename it, then run cleanup again',
  });
}

const undoLvm: UndoHandler = async (entry, context) => {
  const record = readLvmRecord(entry);
  const deadline = performance.now() + BUSY_TIMEOUT_MS;
  for (;;) {
    const volume = await findLvmSnapshot(record);
    if (volume === undefined) return;
    if (!volume.readOnly) {
      context.reporter.warn(
        `the LVM snapshot ${volume.group}/${volume.name} of disk ${record.target} was made writable, and is left alone: remove it if nobody needs it`,
      );
      return;
    }
    if (await remove(volume)) return;
    context.signal?.throwIfAborted();
    if (performance.now() > deadline) {
      throw failed(
        `the LVM snapshot ${volume.group}/${volume.name} cannot be removed: somebody has it open`,
        {
          hint: `who? fuser -v ${volume.device}; then run cleanup again`,
        },
      );
    }
    await new Promise((resolve) => setTimeout(resolve, BUSY_POLL_MS));
  }
};

export const lvmUndo = { [LVM_KIND]: undoLvm, ...metadataUndo };
