import * as v from 'valibot';
import { messageOf } from '../errors.js';
import type { ImageLayer } from '../image/image-layer.js';
import type { JournalEntry } from '../session/journal.js';
import { identityOf, imageIdentity, isSameImage, writeMark } from '../snapshot/image-identity.js';
import { OVERLAY_KIND } from '../snapshot/watched-kinds.js';
import type { Changes, Comparing, Facts, Observation, TrackedDisk, Tracker } from './tracker.js';

const File = v.object({ path: v.string(), identity: imageIdentity });

const LayerState = v.object({
  ...File.entries,
  format: v.string(),
  /** See writeMark; null where there is none. */
  mark: v.nullable(v.string()),
});

type LayerState = v.InferOutput<typeof LayerState>;

const FactsSchema = v.object({
  /** What the frozen disk was made of, top first. */
  layers: v.array(LayerState),
  /** What the VM writes to from that moment on, if it is kept for the next session. */
  overlay: v.optional(File),
  /** What is recorded of the overlay that an earlier session left, if the frozen disk is that. */
  kept: v.optional(
    v.object({
      overlay: File,
      base: File,
      /** What `writeMark` said of the base when it was written last: by the guest, or by our own merge. Null: not known any more. */
      baseMark: v.nullable(v.string()),
    }),
  ),
});

type OverlayFacts = v.InferOutput<typeof FactsSchema>;

/** The part of an `overlay` entry of a journal that matters here; see snapshot/overlay/record.ts. */
const Entry = v.object({
  session: v.string(),
  overlay: v.string(),
  base: File,
  file: imageIdentity,
  made: v.literal(true),
  baseMark: v.optional(v.string()),
  mergeUnseen: v.optional(v.boolean()),
  committing: v.optional(v.boolean()),
  merged: v.optional(v.boolean()),
  /** None for a transient VM, which would start without the overlay. */
  definition: v.optional(v.unknown()),
});

type Entry = v.InferOutput<typeof Entry>;

function readEntry(entry: JournalEntry | undefined): Entry | undefined {
  if (entry?.kind !== OVERLAY_KIND) return undefined;
  const parsed = v.safeParse(Entry, entry.data);
  return parsed.success ? parsed.output : undefined;
}

function stateOf({ path, format }: ImageLayer): LayerState {
  const identity = identityOf(path);
  if (identity === undefined) throw new Error(`${path} is gone`);
  return { path, format, identity, mark: writeMark(path) ?? null };
}

function isFile({ path, identity }: v.InferOutput<typeof File>, other: LayerState): boolean {
  return path === other.path && isSameImage(identity, other.identity);
}

/** Why the layers do not tell; undefined if they do. */
function obstacle(layers: readonly ImageLayer[]): string | undefined {
  for (const { path, format, dataFile } of layers) {
    if (format !== 'raw' && format !== 'qcow2') return `${path} has the format ${format}`;
    if (dataFile !== undefined) return `the data of ${path} is in another file`;
  }
  return undefined;
}

async function observe({ layers, snapshot, kept = [], keep }: TrackedDisk): Promise<Observation> {
  try {
    const reason = obstacle(layers);
    if (reason !== undefined) return { kind: 'none', reason };
    const states = layers.map(stateOf);
    const own = kept
      .map(readEntry)
      .find(
        (entry) => entry !== undefined && isFile({ path: entry.overlay, identity: entry.file }, states[0]!),
      );
    // Nothing was put onto the overlay of an earlier session: what is read is frozen in another way, and it goes on as it is.
    const next = snapshot === undefined ? own : readEntry(snapshot);
    const lasting = keep && next?.definition !== undefined;
    if (!lasting && own === undefined)
      return { kind: 'none', reason: 'no overlay is kept between sessions (--keep-overlay)' };
    const facts: OverlayFacts = {
      layers: states,
      ...(lasting ? { overlay: { path: next.overlay, identity: next.file } } : {}),
      ...(own === undefined ? {} : { kept: keptFacts(own) }),
    };
    return { kind: 'facts', facts, lasting, ...(lasting ? { madeBy: next.session } : {}) };
  } catch (error) {
    return { kind: 'none', reason: messageOf(error) };
  }
}

function keptFacts(entry: Entry): OverlayFacts['kept'] {
  const { overlay, file, base, baseMark } = entry;
  const known = entry.mergeUnseen !== true && entry.committing !== true && entry.merged !== true;
  return {
    overlay: { path: overlay, identity: file },
    base: { path: base.path, identity: base.identity },
    baseMark: known ? (baseMark ?? null) : null,
  };
}

function isUnwritten(before: string | null, now: string | null): boolean {
  return before !== null && before === now;
}

/** Why the frozen disk is not what was frozen before plus one overlay. */
function whyUnknown(before: OverlayFacts, now: OverlayFacts): string | undefined {
  const [top, base, ...lower] = now.layers;
  if (before.overlay === undefined) return 'the overlay of the last session was not kept';
  if (top === undefined || top.path !== before.overlay.path)
    return `the VM is not on the overlay of the last session, but on ${top?.path}`;
  if (!isFile(before.overlay, top) || top.format !== 'qcow2') return `${top.path} was replaced`;
  if (now.kept === undefined) return `nothing is recorded of ${top.path}`;
  if (base === undefined) return `${top.path} has no base any more`;
  if (!isSameImage(now.kept.base.identity, base.identity)) return `${top.path} lies on another base`;
  // What was above the base then is an overlay of ours that we merged into it since.
  const at = before.layers.findIndex(
    ({ identity, format }) => isSameImage(identity, base.identity) && format === base.format,
  );
  if (at < 0) return `${base.path} is another image than in the last session`;
  if (!isUnwritten(now.kept.baseMark, base.mark)) return `${base.path} may have been written by others`;
  if (at === 0 && !isUnwritten(before.layers[0]!.mark, base.mark)) return `${base.path} was written`;
  return lowerDiffers(before.layers.slice(at + 1), lower);
}

function lowerDiffers(before: readonly LayerState[], now: readonly LayerState[]): string | undefined {
  if (before.length !== now.length) return 'the image has more or fewer layers';
  for (const [number, layer] of now.entries()) {
    const then = before[number]!;
    if (!isSameImage(then.identity, layer.identity) || then.format !== layer.format)
      return `${layer.path} is another image than in the last session`;
    if (!isUnwritten(then.mark, layer.mark)) return `${layer.path} may have been written`;
  }
  return undefined;
}

async function changesSince(before: Facts, now: Facts, { disk }: Comparing): Promise<Changes> {
  const parsed = v.safeParse(FactsSchema, before);
  const reason = parsed.success
    ? whyUnknown(parsed.output, v.parse(FactsSchema, now))
    : 'what it knew of the last session is damaged';
  if (reason !== undefined) return { kind: 'unknown', reason };
  // Data, and zeros where the guest wrote zeros or discarded. All else is as the overlay's base has it.
  if (disk.own === undefined) return { kind: 'unknown', reason: 'nobody looked at what it holds' };
  return { kind: 'known', ranges: disk.own };
}

function stillHolds(facts: Facts): boolean {
  try {
    const { layers, overlay } = v.parse(FactsSchema, facts);
    const file = overlay === undefined ? undefined : identityOf(overlay.path);
    if (overlay === undefined || file === undefined || !isSameImage(file, overlay.identity)) return false;
    return layers.every(({ path, identity, mark }) => {
      const found = identityOf(path);
      return (
        found !== undefined && isSameImage(found, identity) && isUnwritten(mark, writeMark(path) ?? null)
      );
    });
  } catch {
    return false;
  }
}

/**
 * The overlay that the VM was put onto in the last session, and that was not merged since: what it holds is what changed, as long as
 * its base was not written but by our own merges.
 */
export const overlayTracker: Tracker = { kind: 'overlay', observe, changesSince, stillHolds };
