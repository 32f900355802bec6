import * as fs from 'node:fs';
import * as path from 'node:path';
import * as v from 'valibot';
import { readIfExists, replaceFile } from '../host/durable.js';

const Milliseconds = v.pipe(v.number(), v.integer(), v.minValue(0));
const ChunkNumber = v.pipe(v.number(), v.integer(), v.minValue(0));

const Schema = v.object({
  version: v.literal(1),
  /** The session that the index describes: every row of it is what its chunk held then. */
  session: v.string(),
  /** Fingerprint of that index. With another one nothing of this record holds, except who is distrusted. */
  index: v.pipe(v.string(), v.regex(/^[0-9a-f]{16}$/)),
  /** When the last session began that read the whole disk; since the epoch. */
  fullScan: Milliseconds,
  /** Chunks that have the hash of zeros but are none. */
  falseZeros: v.array(ChunkNumber),
  /** The sums file that the session showed: how its lines look, and its time. */
  sums: v.optional(
    v.object({
      directory: v.string(),
      layout: v.string(),
      skipsZeros: v.boolean(),
      mtime: v.pipe(v.number(), v.integer(), v.minValue(0)),
    }),
  ),
  /** What each tracker needs to go on from that session. */
  bases: v.array(
    v.object({
      tracker: v.string(),
      facts: v.record(v.string(), v.unknown()),
      /** Id of the session whose snapshot it goes on from; that of this record if undefined. */
      madeBy: v.optional(v.string()),
    }),
  ),
  /** Trackers that were wrong about this disk, until a later session has read all of it. */
  distrusted: v.array(
    v.object({ tracker: v.string(), session: v.string(), chunk: ChunkNumber, at: Milliseconds }),
  ),
});

/** What is known of one disk beside its index: `<index directory>/<target>.tracking.v1.json`. */
export type TrackingRecord = v.InferOutput<typeof Schema>;

export type ShownSums = NonNullable<TrackingRecord['sums']>;

export type Distrust = TrackingRecord['distrusted'][number];

function fileOf(indexDirectory: string, target: string): string {
  return path.join(indexDirectory, `${target}.tracking.v1.json`);
}

/** Undefined if there is none. A sentence's clause if it cannot be used; then the disk is read as a whole. */
export function readTracking(indexDirectory: string, target: string): TrackingRecord | string | undefined {
  try {
    const text = readIfExists(fileOf(indexDirectory, target));
    if (text === undefined) return undefined;
    const parsed = v.safeParse(Schema, JSON.parse(text));
    return parsed.success ? parsed.output : 'the record of the last session is damaged';
  } catch {
    return 'the record of the last session cannot be read';
  }
}

/**
 * Written after the index that it describes: a crash in between leaves an index without a record that fits it.
 */
export function writeTracking(indexDirectory: string, target: string, record: TrackingRecord): void {
  replaceFile(fileOf(indexDirectory, target), `${JSON.stringify(record)}\n`);
}

export function removeTracking(indexDirectory: string, target: string): void {
  fs.rmSync(fileOf(indexDirectory, target), { force: true });
}
