import * as path from 'node:path';
import * as v from 'valibot';
import type { ChunkHasher } from '../chunks/chunk-hash.js';
import { formatHash } from '../chunks/paths.js';
import { readIfExists, replaceFile } from '../host/durable.js';
import { latestPossibleMtime, type SessionTimes } from './stable-times.js';

const Seconds = v.pipe(v.number(), v.integer(), v.minValue(0));

const Schema = v.object({
  version: v.literal(1),
  /** Names at the top of the tree, in the last session. */
  names: v.array(v.string()),
  /** mtime of the tree's root directory. */
  rootMtime: Seconds,
  /** Targets of disks of which chunks of zeros were left out when they were last in the tree, up to a session that was not cut off. */
  zerosSkipped: v.optional(v.array(v.string())),
  newest: Seconds,
  unsettled: Seconds,
});

/** What one tree has shown so far, apart from its chunks: see SessionTimes for `newest` and `unsettled`. */
export type TreeRecord = v.InferOutput<typeof Schema>;

/** Beside it in the file: 16 hex digits, XXH64 of the record as JSON. Not in files of older versions. */
const Stored = v.looseObject({ checksum: v.optional(v.string()) });

const EMPTY: TreeRecord = { version: 1, names: [], rootMtime: 0, newest: 0, unsettled: 0 };

function fileIn(indexDirectory: string): string {
  return path.join(indexDirectory, 'tree.v1.json');
}

/** Of a record as it was, or will be, written: also of what it has that this version does not know. */
function checksumOf(record: object, hasher: ChunkHasher): string {
  const halves = new Uint32Array(2);
  hasher.hash(Buffer.from(JSON.stringify(record)), halves, 0);
  return formatHash(halves[0]!, halves[1]!);
}

/** The record of the last session; an empty one if there is none or it is damaged. */
export function readTreeRecord(indexDirectory: string, hasher: ChunkHasher): TreeRecord {
  const text = readIfExists(fileIn(indexDirectory));
  if (text === undefined) return EMPTY;
  try {
    const { checksum, ...record } = v.parse(Stored, JSON.parse(text));
    if (checksum !== undefined && checksum !== checksumOf(record, hasher)) return EMPTY;
    return v.parse(Schema, record);
  } catch {
    return EMPTY;
  }
}

/** Directories keep their time while the set of names in them is the same. */
export function rootMtime(record: TreeRecord, names: readonly string[], snapshot: number): number {
  const same = [...record.names].sort().join('\0') === [...names].sort().join('\0');
  return same && record.rootMtime !== 0 ? record.rootMtime : Math.max(snapshot, record.rootMtime + 1);
}

/** To be written before the tree can be seen: until it is settled, this session may have shown times up to its latest. */
export function openRecord(
  indexDirectory: string,
  record: TreeRecord,
  session: Pick<TreeRecord, 'rootMtime' | 'zerosSkipped'> & { times: SessionTimes; names: readonly string[] },
  hasher: ChunkHasher,
): void {
  const { times, names, ...known } = session;
  const unsettled = Math.max(record.unsettled, latestPossibleMtime(times));
  write(indexDirectory, { ...record, ...known, names: [...names], unsettled }, hasher);
}

/**
 * To be written once all rows of the session are saved and nobody sees the tree any more. `complete`: whether all chunks were
 * looked at. Those that were not may still have the time that a session cut off showed. `zerosShown`: targets of the disks of which
 * chunks of zeros were in the tree. Even if no chunk was changed, the sums file had the latest time; when it changes in the next
 * session it needs a later one.
 */
export function settleRecord(
  indexDirectory: string,
  times: SessionTimes,
  outcome: { complete: boolean; zerosShown?: readonly string[] },
  hasher: ChunkHasher,
): void {
  const { complete, zerosShown = [] } = outcome;
  const record = readTreeRecord(indexDirectory, hasher);
  const newest = Math.max(record.newest, latestPossibleMtime(times));
  const zerosSkipped = record.zerosSkipped?.filter((target) => !zerosShown.includes(target));
  write(
    indexDirectory,
    { ...record, zerosSkipped, newest, unsettled: complete ? 0 : times.unsettled },
    hasher,
  );
}

function write(indexDirectory: string, record: TreeRecord, hasher: ChunkHasher): void {
  const stored = { ...record, checksum: checksumOf(record, hasher) };
  replaceFile(fileIn(indexDirectory), `${JSON.stringify(stored)}\n`);
}
