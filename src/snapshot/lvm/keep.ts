import type { JournalEntry } from '../../session/journal.js';
import { volumeWithPool } from './logical-volume.js';
import { findLvmSnapshot, readLvmRecord } from './undo.js';

/** A snapshot that stays takes up what its volume changes; in a fuller pool the guests need that themselves. */
const KEEP_PERCENT = 90;
/** As when one is made: see provider.ts. */
const WARN_PERCENT = 80;

/** What is to be told of a snapshot that is to stay for the next session. `refused`: it must not. */
export interface KeepAdvice {
  readonly refused: boolean;
  readonly message: string;
}

/** Undefined: there is room enough. */
export async function adviseKeeping(entry: JournalEntry): Promise<KeepAdvice | undefined> {
  const record = readLvmRecord(entry);
  const { target, uuid = (await findLvmSnapshot(record))?.uuid } = record;
  const found = uuid === undefined ? undefined : await volumeWithPool(uuid);
  if (found?.volume.pool === undefined) return undefined;
  const { volume: snapshot, pool } = found;
  const used = Math.max(pool?.usedPercent ?? 100, pool?.metadataPercent ?? 100);
  if (used < WARN_PERCENT) return undefined;
  const full = `the thin pool ${snapshot.group}/${snapshot.pool} is ${used} % full`;
  if (used > KEEP_PERCENT) {
    return {
      refused: true,
      message: `${full}: the snapshot of disk ${target} is not kept, and the next session reads the whole disk`,
    };
  }
  return { refused: false, message: `${full}, and the snapshot of disk ${target} that is kept in it grows` };
}
