import { type ChunkHasher, createHasher } from '../chunks/chunk-hash.js';
import { chunkLength, type Geometry, geometry } from '../chunks/geometry.js';
import { sumsLineLength } from '../chunks/sums-line.js';
import { StoredIndex } from '../content-index/index-file.js';
import { sampleCount } from '../content-index/pick-samples.js';
import { readTreeRecord } from '../content-index/tree-record.js';
import type { ExtentMap } from '../image/extent-map.js';
import type { ImageReference } from '../image/image-reference.js';
import { inspectImage } from '../image/inspect.js';
import { loadDomain } from '../libvirt/load-domain.js';
import { Virsh } from '../libvirt/virsh.js';
import type { Reporter } from '../report/reporter.js';
import { imageOf } from '../snapshot/none.js';
import { selectDisks } from '../snapshot/select.js';
import { LVM_KIND, OVERLAY_KIND } from '../snapshot/watched-kinds.js';
import { prepareLive } from '../tracking/thin.js';
import { mappedBytes, withoutUnmapped } from '../tracking/thin-mapped.js';
import { indexFile } from './daemon-config.js';
import { chunkRanges, type DiskChanges } from './disk-tracking.js';
import { withKeptJournal } from './estimate-journal.js';
import { chosenImages } from './freeze-source.js';
import { keptSnapshots, targetsOf } from './kept-snapshots.js';
import type { BackupSettings } from './settings.js';
import type { Source } from './source.js';
import { trackDisk } from './track-disk.js';

export interface EstimateRequest {
  readonly source: Source;
  readonly settings: Pick<BackupSettings, 'state' | 'connect' | 'exclude' | 'chunkSize' | 'tracking'>;
  readonly reporter: Reporter;
  readonly signal?: AbortSignal | undefined;
}

/** All in bytes. */
export interface DiskEstimate {
  readonly target: string;
  readonly size: number;
  /** What the image does not say is zeros. */
  readonly data: number;
  /** What the next session reads of the disk by itself, the sample of the audit included. */
  readonly read: number;
  /** Chunk files that the next backup finds changed: at least, and at most. */
  readonly send: { readonly least: number; readonly most: number };
  /** The sums of this disk, which are sent each time, but if a tracker knows that nothing changed. */
  readonly sums: number;
  /** What knows the changes, if anything does. */
  readonly tracker: string | null;
  /** Why nothing does. */
  readonly reason: string | null;
}

export interface Estimate {
  readonly name: string;
  readonly disks: readonly DiskEstimate[];
}

interface LiveDisk {
  readonly target: string;
  readonly image: ImageReference;
  /** The VM that has it open now, if one has. */
  readonly live?: { readonly virsh: Virsh; readonly uuid: string } | undefined;
}

/** What a backup would read and send if it began now. Makes no session and changes nothing. */
export async function estimate(request: EstimateRequest): Promise<Estimate> {
  const { source } = request;
  const disks: DiskEstimate[] = [];
  for (const disk of await liveDisks(request)) disks.push(await estimateDisk(disk, request));
  return { name: source.name, disks };
}

async function liveDisks({ source, settings, reporter, signal }: EstimateRequest): Promise<LiveDisk[]> {
  if (source.kind === 'images') return chosenImages(source, settings.exclude);
  const virsh = new Virsh({ connect: settings.connect, signal });
  const domain = await loadDomain(virsh, source.name);
  const targets = new Set(domain.disks.map(({ target }) => target));
  const exclude = settings.exclude.filter((target) => source.amongOthers !== true || targets.has(target));
  return selectDisks(domain, { exclude, reporter }).map((disk) => ({
    target: disk.target,
    image: { ...imageOf(disk), inUse: domain.active },
    live: domain.active ? { virsh, uuid: domain.uuid } : undefined,
  }));
}

async function estimateDisk(
  { target, image, live }: LiveDisk,
  { source, settings, reporter, signal }: EstimateRequest,
): Promise<DiskEstimate> {
  const since = Date.now();
  const kept = keptSnapshots({ name: source.name, state: settings.state }).filter((entry) =>
    targetsOf(entry).includes(target),
  );
  const keptOverlay = kept.some(({ kind }) => kind === OVERLAY_KIND);
  const inspected = await inspectImage(image, { reporter, signal, own: keptOverlay });
  const { virtualSize, layers, sources, own } = inspected;
  const cut = geometry(virtualSize, settings.chunkSize);
  const hasher = await createHasher();
  const indexDirectory = settings.state.index(source.name);
  if (kept.some(({ kind }) => kind === LVM_KIND)) await prepareLive({ layers, live });
  const { extents, changes } = await withKeptJournal(
    { name: source.name, state: settings.state },
    { kept, live: live !== undefined, reporter },
    async (journal) => {
      const found = {
        target,
        layers,
        sources,
        extents: inspected.extents,
        own,
        since,
        kept,
        keep: false,
        live,
      };
      // Of those who need a journal, the tracker of thin volumes is the only one.
      const disk =
        journal === undefined
          ? found
          : { ...found, extents: await withoutUnmapped(found, { journal, reporter, signal }) };
      const tracked = { cut, indexDirectory, session: '', settings: settings.tracking, hasher };
      return { ...disk, ...(await trackDisk({ disk, ...tracked, journal, reporter, signal })) };
    },
  );
  const data = Math.min(extents.dataBytes, (await mappedBytes(layers)) ?? Infinity);
  const found = StoredIndex.open(indexFile(indexDirectory, target), hasher);
  const known = found instanceof StoredIndex && found.header.chunkSize === cut.chunkSize;
  if (found instanceof StoredIndex) found.close();
  const sums = sumsLineLength({ directory: target, layout: 'chunkmount' }) * cut.chunkCount;
  return {
    target,
    size: cut.size,
    data,
    ...amounts(changes, { cut, extents, data, known, share: settings.tracking.audit }),
    sums: keepsSums(changes, indexDirectory, hasher) ? 0 : sums,
    tracker: (changes.kind === 'known' ? changes : changes.amount)?.tracker ?? null,
    reason: changes.kind === 'known' || changes.amount !== undefined ? null : changes.reason,
  };
}

/** Whether the sums file will have the time of the last session: if the tree looks as it did then. See openDisk in served-tree.ts. */
function keepsSums(changes: DiskChanges, indexDirectory: string, hasher: ChunkHasher): boolean {
  if (changes.kind === 'unknown' || changes.ranges.length > 0 || changes.sums === undefined) return false;
  return readTreeRecord(indexDirectory, hasher).unsettled === 0;
}

interface Facts {
  readonly cut: Geometry;
  readonly extents: ExtentMap;
  /** Bytes that a session without a tracker reads. */
  readonly data: number;
  /** Whether there is an index to compare with. */
  readonly known: boolean;
  /** Of the audit. */
  readonly share: number;
}

function amounts(
  changes: DiskChanges,
  { cut, extents, data, known, share }: Facts,
): Pick<DiskEstimate, 'read' | 'send'> {
  const { size, chunkSize } = cut;
  const audit = sampleCount({ disk: cut, extents, share }) * chunkSize;
  if (changes.kind === 'unknown') {
    if (changes.amount === undefined) return { read: data, send: { least: known ? 0 : size, most: size } };
    const { bytes, granularity } = changes.amount;
    // Each piece may lie in a chunk of its own.
    const most = Math.min(size, Math.ceil(bytes / granularity) * Math.max(chunkSize, granularity));
    return { read: Math.min(most + audit, size), send: { least: 0, most } };
  }
  let read = 0;
  let most = 0;
  for (const { first, end } of chunkRanges(changes.ranges, cut)) {
    for (let chunk = first; chunk < end; chunk++) {
      const length = chunkLength(cut, chunk);
      most += length;
      if (!extents.isZero(chunk * chunkSize, length)) read += length;
    }
  }
  return { read: Math.min(read + audit, size), send: { least: 0, most } };
}
