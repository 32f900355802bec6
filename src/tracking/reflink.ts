import * as fs from 'node:fs';
import * as v from 'valibot';
import { failed, messageOf } from '../errors.js';
import type { ExtentMap } from '../image/extent-map.js';
import { ExtentMapBuilder } from '../image/extent-map-builder.js';
import { isSameMap, readFileExtents } from '../image/file-extents.js';
import { inspectImage } from '../image/inspect.js';
import type { ByteRange } from '../image/own-ranges.js';
import { cloneDamage, readCloneRecord } from '../snapshot/reflink/clone-record.js';
import { sharesBlocks } from '../snapshot/reflink/share-blocks.js';
import { REFLINK_KIND } from '../snapshot/watched-kinds.js';
import { difference, type FileState, FileStateSchema, fileState } from './file-state.js';
import { differentRanges, type MappedDisk, union } from './shared-blocks.js';
import { stillTracker } from './still.js';
import type { Changes, Comparing, Facts, Observation, TrackedDisk, Tracker } from './tracker.js';

/*
 * The clone that the last session kept still holds its blocks: nobody can overwrite them in place (what is shared is copied when it is
 * written, also in Btrfs's files without copy-on-write), nor can they be freed and used for something else. So where this session's
 * clone has the same blocks at the same place, it has the same content. Whatever moves blocks (defragmentation, balancing,
 * deduplication) makes more look changed, never less. What could break this: a write to the kept clone itself (its times tell, and it
 * is read-only), and a second space of addresses in one file system (XFS's realtime device; that would take another file).
 */

const FORMATS: ReadonlySet<string> = new Set(['raw', 'qcow2']);

const Digits = v.pipe(v.string(), v.regex(/^-?[0-9]{1,24}$/));

const FactsSchema = v.object({
  /** The clone; or the image, where nothing was made because nobody writes it. */
  file: FileStateSchema,
  /** The image that was cloned. */
  image: v.object({ inode: Digits, birth: Digits }),
  /** What the tracker `still` says of the layers below; none if there are none. */
  below: v.optional(v.record(v.string(), v.unknown())),
});

type ReflinkFacts = v.InferOutput<typeof FactsSchema>;

function none(reason: string): Observation {
  return { kind: 'none', reason };
}

function unknown(reason: string): Changes {
  return { kind: 'unknown', reason };
}

/** Why this disk says nothing; undefined if it may. */
function obstacle({ layers, snapshot }: TrackedDisk): string | undefined {
  const top = layers[0]!;
  if (snapshot !== undefined && snapshot.kind !== REFLINK_KIND)
    return 'its snapshot is none of --snapshot=reflink';
  if (top.device) return `${top.path} is a block device`;
  if (!FORMATS.has(top.format)) return `its format is ${top.format}`;
  if (top.dataFile !== undefined) return `its data is in another file, ${top.dataFile.path}`;
  return sharesBlocks(top.path) ? undefined : `${top.path} is not on XFS or Btrfs`;
}

/** The image that the disk is a clone of, or itself. */
function imageOf({ snapshot }: TrackedDisk, file: FileState): ReflinkFacts['image'] {
  if (snapshot === undefined) return { inode: file.inode, birth: file.birth };
  const record = readCloneRecord(snapshot);
  const damage = record.clone === file.path ? cloneDamage(record) : 'is not what is read';
  if (damage !== undefined) throw failed(`the clone ${record.clone} ${damage}`);
  const { inode, birth } = record.image.identity;
  return { inode, birth };
}

async function observe(disk: TrackedDisk): Promise<Observation> {
  try {
    const reason = obstacle(disk);
    if (reason !== undefined) return none(reason);
    const [top, ...lower] = disk.layers;
    const file = fileState(top!.path, top!.format);
    const facts: ReflinkFacts = { file, image: imageOf(disk, file) };
    const lasting = disk.snapshot !== undefined && disk.keep;
    if (lower.length === 0) return { kind: 'facts', facts, lasting };
    const below = await stillTracker.observe({ ...disk, layers: lower, sources: [] });
    if (below.kind === 'none') return none(`of what lies below it nothing is known: ${below.reason}`);
    return { kind: 'facts', facts: { ...facts, below: below.facts }, lasting };
  } catch (error) {
    return none(messageOf(error));
  }
}

/** The kept clone is proven to be what it was by all that its file system tells of it, but for the device's number, which a boot can change. */
function keptDifference(before: FileState, now: FileState): string | undefined {
  const kept = fileState(before.path, before.format);
  const differs = difference({ ...before, device: kept.device }, kept);
  if (differs !== undefined) return `the kept clone ${before.path} ${differs}`;
  return kept.device === now.device ? undefined : `the kept clone ${before.path} is on another file system`;
}

async function belowDifference(
  before: ReflinkFacts,
  now: ReflinkFacts,
  comparing: Comparing,
): Promise<string | undefined> {
  if (before.below === undefined && now.below === undefined) return undefined;
  if (before.below === undefined || now.below === undefined) return 'the image has more or fewer layers';
  const changes = await stillTracker.changesSince(before.below, now.below, comparing);
  return changes.kind === 'unknown' ? changes.reason : undefined;
}

async function whyUnknown(
  before: ReflinkFacts,
  now: ReflinkFacts,
  comparing: Comparing,
): Promise<string | undefined> {
  const { image, file } = before;
  if (image.inode !== now.image.inode || image.birth !== now.image.birth) return 'the image is another file';
  if (file.format !== now.file.format) return `it is read as ${now.file.format}, and was as ${file.format}`;
  if (file.format === 'raw' && file.size !== now.file.size) return 'the image has another size';
  return keptDifference(file, now.file) ?? (await belowDifference(before, now, comparing));
}

/** Does `work` with a descriptor of exactly that file. */
async function opened<T>(file: FileState, work: (fd: number) => Promise<T>): Promise<T> {
  const fd = fs.openSync(file.path, 'r');
  try {
    const { ino } = fs.fstatSync(fd, { bigint: true });
    if (String(ino) !== file.inode) throw failed(`${file.path} was replaced a moment ago`);
    return await work(fd);
  } finally {
    fs.closeSync(fd);
  }
}

/** The map of a raw file: what is where in the disk is where in the file. Holes show in its blocks. */
function rawMap({ path, size }: FileState, blocks: MappedDisk['blocks']): MappedDisk {
  const builder = new ExtentMapBuilder();
  builder.addData(blocks.size, 0, 0);
  return {
    file: path,
    extents: builder.finish(),
    sources: [{ kind: 'file', path, size: Number(size) }],
    blocks,
  };
}

/** Maps of blocks: of the kept clone, of what is there now, and of the kept clone again. */
async function blocksOf(
  before: FileState,
  now: FileState,
  signal: AbortSignal | undefined,
): Promise<readonly [ExtentMap, ExtentMap, ExtentMap]> {
  return opened(before, (old) =>
    opened(now, async (fd) => {
      const first = await readFileExtents(old, signal);
      const current = await readFileExtents(fd, signal);
      return [first, current, await readFileExtents(old, signal)] as const;
    }),
  );
}

async function rangesOf(
  { file: kept }: ReflinkFacts,
  { file: now }: ReflinkFacts,
  { disk, reporter, signal }: Comparing,
): Promise<readonly ByteRange[] | string> {
  const [first, current, again] = await blocksOf(kept, now, signal);
  const { path, format } = kept;
  const raw = format === 'raw';
  const then = raw ? undefined : await inspectImage({ path, format }, { reporter, signal });
  const today = raw ? rawMap(now, current) : { file: now.path, ...disk, blocks: current };
  const old = (blocks: ExtentMap): MappedDisk =>
    then === undefined ? rawMap(kept, blocks) : { file: path, ...then, blocks };
  if (old(first).extents.size !== today.extents.size)
    return `the disk was resized from ${old(first).extents.size} bytes`;
  const ranges = differentRanges(old(first), today);
  // Had blocks been moved meanwhile, both files could have had the same ones, one after the other.
  return isSameMap(first, again) ? ranges : union(ranges, differentRanges(old(again), today));
}

async function compare(before: ReflinkFacts, now: ReflinkFacts, comparing: Comparing): Promise<Changes> {
  const reason = await whyUnknown(before, now, comparing);
  if (reason !== undefined) return unknown(reason);
  const ranges = await rangesOf(before, now, comparing);
  if (typeof ranges === 'string') return unknown(ranges);
  const meanwhile = keptDifference(before.file, now.file);
  return meanwhile === undefined ? { kind: 'known', ranges } : unknown(meanwhile);
}

async function changesSince(before: Facts, now: Facts, comparing: Comparing): Promise<Changes> {
  const parsed = v.safeParse(FactsSchema, before);
  if (!parsed.success) return unknown('what it knew of the last session is damaged');
  try {
    return await compare(parsed.output, v.parse(FactsSchema, now), comparing);
  } catch (error) {
    comparing.signal?.throwIfAborted();
    return unknown(messageOf(error));
  }
}

function stillHolds(facts: Facts): boolean {
  try {
    const { file, below } = v.parse(FactsSchema, facts);
    const same = difference(file, fileState(file.path, file.format)) === undefined;
    return same && (below === undefined || stillTracker.stillHolds(below));
  } catch {
    return false;
  }
}

/** Compares the blocks of this session's clone with those of the clone that the last one kept: --snapshot=reflink --keep-snapshot. */
export const reflinkTracker: Tracker = { kind: 'reflink', observe, changesSince, stillHolds };
