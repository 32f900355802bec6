import * as fs from 'node:fs';
import * as v from 'valibot';
import { failed, messageOf } from '../errors.js';
import { readDirtyBitmap } from '../image/dirty-bitmap.js';
import { qcow2Info } from '../image/qcow2-info.js';
import { CHANGES_BITMAP } from '../libvirt/backup-job.js';
import { bytesSinceCheckpoint } from '../libvirt/checkpoints.js';
import { identityOf, imageIdentity, isSameImage } from '../snapshot/image-identity.js';
import { type PullRecord, readPullRecord } from '../snapshot/pull/record.js';
import { PULL_KIND } from '../snapshot/watched-kinds.js';
import { difference, type FileState, FileStateSchema, fileState } from './file-state.js';
import type { Changes, Comparing, Facts, Observation, TrackedDisk, Tracker } from './tracker.js';

const DiskSchema = v.object({
  /** UUID of the VM: checkpoints are libvirt's, and go with it. */
  domain: v.string(),
  image: v.object({ path: v.string(), identity: imageIdentity }),
  size: v.number(),
  /** What the image lies on. QEMU only reads it, and a write by others no bitmap would tell of. */
  backing: v.array(FileStateSchema),
  /** States that are kept inside the image: going back to one is not recorded in bitmaps. */
  snapshots: v.number(),
});

/** Of a session. */
const FactsSchema = v.object({
  ...DiskSchema.entries,
  checkpoint: v.string(),
  /** What this session's job serves; of no use later. */
  job: v.object({
    socket: v.string(),
    since: v.optional(v.string()),
    notSince: v.optional(v.string()),
  }),
});

/** Of a disk that the VM goes on writing to. */
const LiveSchema = v.object({ ...DiskSchema.entries, clusterSize: v.number() });

type DiskFacts = v.InferOutput<typeof DiskSchema>;
type BitmapFacts = v.InferOutput<typeof FactsSchema>;

/** Bytes. QEMU takes the clusters of the image up to this: bdrv_get_default_bitmap_granularity of its block/dirty-bitmap.c. */
const MAX_GRANULARITY = 64 * 1024;

function none(reason: string): Observation {
  return { kind: 'none', reason };
}

function unknown(reason: string): Extract<Changes, { kind: 'unknown' }> {
  return { kind: 'unknown', reason };
}

/** Of what the image lies on. Throws where that does not tell whether it was written. */
function backingStates(files: readonly { readonly path: string; readonly format: string }[]): FileState[] {
  return files.map(({ path, format }) => {
    if (!fs.statSync(path).isFile())
      throw failed(`its backing file ${path} is a block device, which has no time of its last write`);
    return fileState(path, format);
  });
}

function factsOf(record: PullRecord, checkpoint: string, size: number): BitmapFacts {
  const { domain, image, socket, snapshots, since, notSince } = record;
  if (image.backing === undefined)
    throw failed('what its image lies on is not on this host, or libvirt does not say');
  return {
    domain: domain.uuid,
    checkpoint,
    image: { path: image.path, identity: image.identity },
    size,
    backing: backingStates(image.backing),
    // A record without a number was never finished.
    snapshots: snapshots ?? 1,
    job: { socket, since, notSince },
  };
}

/** Of a disk that nothing freezes: enough to ask how much was written. */
async function observeLive({ layers, extents, live }: TrackedDisk): Promise<Observation> {
  const [image, ...backing] = layers;
  const identity = image && identityOf(image.path);
  if (live === undefined || image?.format !== 'qcow2' || identity === undefined)
    return none('only the VM that runs on it, a qcow2 image, records what it writes');
  try {
    const states = backingStates(backing);
    const { snapshots, clusterSize } = await qcow2Info(image.path);
    const facts: v.InferOutput<typeof LiveSchema> = {
      domain: live.uuid,
      image: { path: image.path, identity },
      size: extents.size,
      backing: states,
      snapshots,
      clusterSize,
    };
    return { kind: 'facts', facts, lasting: false };
  } catch (error) {
    return none(messageOf(error));
  }
}

async function observe(disk: TrackedDisk): Promise<Observation> {
  const { snapshot, extents } = disk;
  if (snapshot === undefined) return observeLive(disk);
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

function whyUnknown(before: BitmapFacts, now: DiskFacts): string | undefined {
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
  return undefined;
}

async function changesSince(before: Facts, now: Facts, { disk }: Comparing): Promise<Changes> {
  const parsed = v.safeParse(FactsSchema, before);
  if (!parsed.success) return unknown('what it knew of the last session is damaged');
  const reason = whyUnknown(parsed.output, v.parse(DiskSchema, now));
  if (reason !== undefined) return unknown(reason);
  try {
    return await (disk.live === undefined ? ask : count)(parsed.output, now, disk);
  } catch (error) {
    return unknown(messageOf(error));
  }
}

/** What this session's job says was written. */
async function ask({ checkpoint }: BitmapFacts, now: Facts, { target }: TrackedDisk): Promise<Changes> {
  const { job, size } = v.parse(FactsSchema, now);
  if (job.since !== checkpoint)
    return unknown(job.notSince ?? `the backup job does not go on from checkpoint ${checkpoint}`);
  const source = { socket: job.socket, nbdExport: target, bitmap: CHANGES_BITMAP };
  return { kind: 'known', ranges: await readDirtyBitmap(source, size) };
}

/** Without a job libvirt only says how much. */
async function count(before: BitmapFacts, now: Facts, { target, live }: TrackedDisk): Promise<Changes> {
  const { clusterSize } = v.parse(LiveSchema, now);
  const { virsh, uuid } = live!;
  const bytes = await bytesSinceCheckpoint(virsh, uuid, { name: before.checkpoint, target });
  if (bytes === undefined) return unknown(`checkpoint ${before.checkpoint} does not record it`);
  const amount = { bytes, granularity: Math.min(clusterSize, MAX_GRANULARITY) };
  return { ...unknown('where it was written only a backup job tells'), amount };
}

/** The checkpoint is what counts in the next session, and libvirt is asked for it then; see end-session.ts for jobs that ended early. */
function stillHolds(facts: Facts): boolean {
  return v.is(FactsSchema, facts);
}

/** What QEMU recorded, in a dirty bitmap of the image, since the checkpoint that the last session made. */
export const bitmapTracker: Tracker = { kind: 'bitmap', observe, changesSince, stillHolds };
