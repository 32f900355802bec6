import * as v from 'valibot';
import { messageOf } from '../errors.js';
import { readDirtyBitmap } from '../image/dirty-bitmap.js';
import { CHANGES_BITMAP } from '../libvirt/backup-job.js';
import { imageIdentity, isSameImage } from '../snapshot/image-identity.js';
import { type PullRecord, readPullRecord } from '../snapshot/pull/record.js';
import { PULL_KIND } from '../snapshot/watched-kinds.js';
import { difference, FileStateSchema, fileState } from './file-state.js';
import type { Changes, Facts, Observation, TrackedDisk, Tracker } from './tracker.js';

const FactsSchema = v.object({
  /** UUID of the VM: checkpoints are libvirt's, and go with it. */
  domain: v.string(),
  checkpoint: v.string(),
  image: v.object({ path: v.string(), identity: imageIdentity }),
  size: v.number(),
  /** What the image lies on. QEMU only reads it, and a write by others no bitmap would tell of. */
  backing: v.array(FileStateSchema),
  /** States that are kept inside the image: going back to one is not recorded in bitmaps. */
  snapshots: v.number(),
  /** What this session's job serves; of no use later. */
  job: v.object({
    socket: v.string(),
    since: v.optional(v.string()),
    notSince: v.optional(v.string()),
  }),
});

type BitmapFacts = v.InferOutput<typeof FactsSchema>;

function none(reason: string): Observation {
  return { kind: 'none', reason };
}

function factsOf(record: PullRecord, checkpoint: string, size: number): BitmapFacts {
  const { domain, image, socket, snapshots, since, notSince } = record;
  return {
    domain: domain.uuid,
    checkpoint,
    image: { path: image.path, identity: image.identity },
    size,
    backing: image.backing.map(({ path, format }) => fileState(path, format)),
    // A record without a number was never finished.
    snapshots: snapshots ?? 1,
    job: { socket, since, notSince },
  };
}

async function observe({ snapshot, extents }: TrackedDisk): Promise<Observation> {
  if (snapshot === undefined) return none('what was written since a checkpoint only a backup job tells');
  if (snapshot.kind !== PULL_KIND) return none('it is not frozen by a backup job (--snapshot=pull)');
  try {
    const record = readPullRecord(snapshot);
    const { checkpoint, noCheckpoint } = record;
    if (checkpoint === undefined) return none(noCheckpoint ?? 'there is no checkpoint');
    return { kind: 'facts', facts: factsOf(record, checkpoint, extents.size), lasting: true };
  } catch (error) {
    return none(messageOf(error));
  }
}

function whyUnknown(before: BitmapFacts, now: BitmapFacts): string | undefined {
  if (before.domain !== now.domain) return 'it is the disk of another VM';
  if (before.image.path !== now.image.path || !isSameImage(before.image.identity, now.image.identity))
    return `its image is not the one that checkpoint ${before.checkpoint} was made of`;
  if (before.size !== now.size) return 'the disk was resized';
  if (before.snapshots > 0 || now.snapshots > 0)
    return 'its image has internal snapshots, and going back to one is not recorded';
  if (before.backing.length !== now.backing.length) return 'its image has more or fewer backing files';
  for (const [number, file] of now.backing.entries()) {
    const differs = difference(before.backing[number]!, file);
    if (differs !== undefined) return `its backing file ${file.path} ${differs}`;
  }
  if (now.job.since === before.checkpoint) return undefined;
  return now.job.notSince ?? `the backup job does not go on from checkpoint ${before.checkpoint}`;
}

async function changesSince(before: Facts, now: Facts, { disk }: { disk: TrackedDisk }): Promise<Changes> {
  const parsed = v.safeParse(FactsSchema, before);
  if (!parsed.success) return { kind: 'unknown', reason: 'what it knew of the last session is damaged' };
  const current = v.parse(FactsSchema, now);
  const reason = whyUnknown(parsed.output, current);
  if (reason !== undefined) return { kind: 'unknown', reason };
  const source = { socket: current.job.socket, nbdExport: disk.target, bitmap: CHANGES_BITMAP };
  try {
    return { kind: 'known', ranges: await readDirtyBitmap(source, current.size) };
  } catch (error) {
    return { kind: 'unknown', reason: messageOf(error) };
  }
}

/** The checkpoint is what counts in the next session, and libvirt is asked for it then; see end-session.ts for jobs that ended early. */
function stillHolds(facts: Facts): boolean {
  return v.is(FactsSchema, facts);
}

/** What QEMU recorded, in a dirty bitmap of the image, since the checkpoint that the last session made. */
export const bitmapTracker: Tracker = { kind: 'bitmap', observe, changesSince, stillHolds };
