import * as v from 'valibot';
import type { JournalEntry } from '../../session/journal.js';
import { imageIdentity } from '../image-identity.js';

const processIdentity = v.object({ pid: v.number(), startTime: v.number(), bootId: v.string() });
const domain = v.object({ uuid: v.string(), name: v.string() });

const pullRecord = v.object({
  /** Id of the session that made it. */
  session: v.string(),
  domain,
  target: v.string(),
  /** Where QEMU saves what the guest overwrites while the job lasts. */
  scratch: v.string(),
  /** The identity of that file, once it was made. */
  file: v.optional(imageIdentity),
  /** The NBD server's socket; the disk is exported by its target. */
  socket: v.string(),
  qemu: processIdentity,
  image: v.object({
    path: v.string(),
    format: v.string(),
    identity: imageIdentity,
    /** Undefined: not all that the image lies on are files or devices of this host. */
    backing: v.optional(v.array(v.object({ path: v.string(), format: v.string() }))),
  }),
  /** The checkpoint that was made in the same moment, if the disk is in it; or why it is not. */
  checkpoint: v.optional(v.string()),
  noCheckpoint: v.optional(v.string()),
  /** The job serves what was written since that one; or why it does not. */
  since: v.optional(v.string()),
  notSince: v.optional(v.string()),
  /** States of the disk inside the image when the job had begun. */
  snapshots: v.optional(v.number()),
});

/** What the journal says of one disk of a backup job. */
export type PullRecord = v.InferOutput<typeof pullRecord>;

/** The record of a `pull` entry. Throws if the journal holds something else. */
export function readPullRecord(entry: JournalEntry): PullRecord {
  return v.parse(pullRecord, entry.data);
}

const jobRecord = v.object({
  session: v.string(),
  connect: v.optional(v.string()),
  domain,
  qemu: processIdentity,
  /** Made for the socket, and for nothing else. */
  directory: v.string(),
  socket: v.string(),
  scratches: v.array(v.string()),
  targets: v.array(v.string()),
  /** When libvirt was last asked for the job, in milliseconds since 1970, and in which boot. */
  askedAt: v.number(),
  bootId: v.string(),
  /** libvirt said yes or no; before, the job may still come. */
  answered: v.optional(v.boolean()),
});

/** What the journal says of a backup job. */
export type JobRecord = v.InferOutput<typeof jobRecord>;

/** The record of a `pull-job` entry. Throws if the journal holds something else. */
export function readJobRecord(entry: JournalEntry): JobRecord {
  return v.parse(jobRecord, entry.data);
}
