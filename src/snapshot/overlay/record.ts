import * as v from 'valibot';
import type { JournalEntry } from '../../session/journal.js';
import { imageIdentity } from '../image-identity.js';

const processIdentity = v.object({ pid: v.number(), startTime: v.number(), bootId: v.string() });

const diskSource = v.object({
  type: v.string(),
  format: v.optional(v.string()),
  source: v.string(),
  backingStore: v.optional(v.string()),
});

/** What the journal holds of one overlay. */
const overlayRecord = v.object({
  /** Id of the session that made it; none for a layer of a chain, which belongs to no session. */
  session: v.optional(v.string()),
  connect: v.optional(v.string()),
  domain: v.object({ uuid: v.string(), name: v.string() }),
  target: v.string(),
  overlay: v.string(),
  base: v.object({ path: v.string(), format: v.string(), identity: imageIdentity }),
  /** The disk's part of the persistent definition before the snapshot; none if the domain is transient. */
  definition: v.optional(diskSource),
  /** The QEMU process that is put onto the overlay. */
  qemu: processIdentity,
  /** A write error had stopped the guest before the snapshot, so no overlay did. Not in journals of older versions. */
  stoppedBefore: v.optional(v.boolean()),

  /** Known once the empty file has been made. */
  file: v.optional(imageIdentity),
  /** When libvirt was about to be asked for the snapshot, in milliseconds since 1970. */
  askedAt: v.optional(v.number()),
  /** libvirt said whether the snapshot was made: it will not come later any more. */
  answered: v.optional(v.boolean()),
  /** The snapshot was made. */
  made: v.optional(v.boolean()),
  /** What `writeMark` said of the base after the snapshot. */
  baseMark: v.optional(v.string()),
  /** The boot in which it said so; that of the snapshot in journals of older versions. */
  markedIn: v.optional(v.string()),
  /** What was merged into the base before that was not seen to its end: others may have written the base since, before it was marked. */
  mergeUnseen: v.optional(v.boolean()),
  /** A commit into the base was begun: from here on its mark says nothing. */
  committing: v.optional(v.boolean()),
  /** What lay on the overlay when it began to be merged from below. */
  above: v.optional(v.object({ path: v.string(), identity: imageIdentity })),
  /** The overlay's content was in the base, and the guest was about to be switched over to it. */
  pivoting: v.optional(v.boolean()),
  /** All of the overlay's content is in the base, and the guest does not write to the overlay any more. */
  merged: v.optional(v.boolean()),
  /** Milliseconds since 1970 when the pivot was asked for. Not in journals of older versions. */
  pivotAsked: v.optional(v.number()),
  /** What `writeMark` said of the overlay when `merged` was recorded. Not in journals of older versions. */
  overlayMark: v.optional(v.string()),
});

export type OverlayRecord = v.InferOutput<typeof overlayRecord>;

/** The record of an `overlay` entry. Throws if the journal holds something else. */
export function readOverlayRecord(entry: JournalEntry): OverlayRecord {
  return v.parse(overlayRecord, entry.data);
}
