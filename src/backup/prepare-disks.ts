import * as path from 'node:path';
import { createHasher } from '../chunks/chunk-hash.js';
import { geometry } from '../chunks/geometry.js';
import { diskPart } from '../chunks/inodes.js';
import { failed } from '../errors.js';
import { allEnded } from '../host/all-ended.js';
import type { Politeness } from '../host/politeness.js';
import { saveExtentMap } from '../image/extent-map-file.js';
import type { ImageChain } from '../image/image-layer.js';
import { type InspectedImage, type InspectOptions, inspectImage } from '../image/inspect.js';
import { startRawView } from '../image/raw-view.js';
import type { Reporter } from '../report/reporter.js';
import type { Journal, JournalEntry } from '../session/journal.js';
import { heldImages, holdLayers } from '../snapshot/hold.js';
import { LVM_KIND, OVERLAY_KIND } from '../snapshot/watched-kinds.js';
import type { DaemonDisk } from './daemon-config.js';
import { LOG_NAME } from './daemon-config.js';
import { snapshotOf } from './kept-snapshots.js';
import type { FrozenSourceDisk } from './source.js';
import { type TrackingSettings, trackDisk } from './track-disk.js';

export interface PrepareDisksRequest {
  readonly disks: readonly FrozenSourceDisk[];
  /** Bytes. */
  readonly chunkSize: number;
  readonly sessionDirectory: string;
  readonly indexDirectory: string;
  /** The session's id. */
  readonly session: string;
  readonly tracking: TrackingSettings;
  /** What earlier sessions left of snapshots: see kept-snapshots.ts. */
  readonly kept: readonly JournalEntry[];
  readonly politeness?: Politeness | undefined;
  readonly journal: Journal;
  readonly reporter: Reporter;
  readonly signal?: AbortSignal | undefined;
}

/** Finds out where the bytes of each frozen disk lie, and starts a raw view of those that only QEMU can decode. */
export async function prepareDisks(request: PrepareDisksRequest): Promise<DaemonDisk[]> {
  checkInodes(request.disks);
  return allEnded(request.disks.map((disk) => prepareDisk(disk, request)));
}

async function prepareDisk(disk: FrozenSourceDisk, request: PrepareDisksRequest): Promise<DaemonDisk> {
  const {
    sessionDirectory,
    chunkSize,
    indexDirectory,
    session,
    tracking: settings,
    journal,
    reporter,
    signal,
  } = request;
  const { target } = disk;
  const since = Date.now();
  const kept = request.kept.filter(({ data }) => data.target === target);
  const keptOverlay = kept.some(({ kind }) => kind === OVERLAY_KIND);
  // What can be done while other programs work is done then.
  const [located, hasher] = await allEnded([mapDisk(disk, { ...request, own: keptOverlay }), createHasher()]);
  const { virtualSize, extents, own, sources, layers } = located;
  const cut = geometry(virtualSize, chunkSize);
  const extentsFile = path.join(sessionDirectory, `${target}.extents`);
  saveExtentMap(extentsFile, extents);
  const snapshot = snapshotOf(journal, target);
  if (settings.keepOverlay && snapshot?.kind === OVERLAY_KIND && snapshot.data.definition === undefined)
    reporter.warn(
      `disk ${target}: its overlay cannot be kept: the VM is transient, and would start without it`,
    );
  const [view, tracking] = await allEnded([
    viewDisk(disk, located, request),
    trackDisk({
      disk: {
        target,
        layers,
        sources,
        extents,
        own,
        since,
        snapshot,
        kept,
        keep: (snapshot ?? kept[0])?.kind === OVERLAY_KIND ? settings.keepOverlay : settings.keepSnapshot,
      },
      cut,
      indexDirectory,
      session,
      settings,
      hasher,
      journal,
      reporter,
      signal,
    }),
  ]);
  return { target, size: virtualSize, chunkSize, extentsFile, sources, view, tracking };
}

export interface LocatedDisk extends InspectedImage {
  /** File of the raw view, if the image needs one. */
  readonly view: string | undefined;
}

type LocateRequest = Pick<
  PrepareDisksRequest,
  'sessionDirectory' | 'politeness' | 'journal' | 'reporter' | 'signal'
>;

/** Finds out where the bytes of one frozen disk lie, and starts a raw view of it if only QEMU can decode it. */
export async function locateDisk(disk: FrozenSourceDisk, request: LocateRequest): Promise<LocatedDisk> {
  const mapped = await mapDisk(disk, request);
  return { ...mapped, view: await viewDisk(disk, mapped, request) };
}

/** Finds out where the bytes of one frozen disk lie. */
async function mapDisk(
  { target, image, snapshot: kind }: FrozenSourceDisk,
  { journal, reporter, signal, own }: LocateRequest & Pick<InspectOptions, 'own'>,
): Promise<InspectedImage> {
  // Of an image that nothing was made for, no more than itself was known when it was frozen. A paused VM holds all of its own.
  const alone = kind === 'none' && image.inUse !== true;
  const hold = alone ? (layers: ImageChain) => holdLayers(layers, { journal, signal }) : undefined;
  const held = heldImages(journal);
  const found = await inspectImage(image, { reporter, signal, own, held, hold });
  const snapshot = snapshotOf(journal, target);
  if (snapshot?.kind !== LVM_KIND) return found;
  const { withoutUnmapped } = await import('../tracking/thin-mapped.js');
  const { layers, extents } = found;
  const mapped = await withoutUnmapped({ target, layers, extents, snapshot }, { journal, reporter, signal });
  return { ...found, extents: mapped };
}

/** Starts a raw view of a disk that only QEMU can decode; returns its file. */
async function viewDisk(
  { target, image }: FrozenSourceDisk,
  { layers, virtualSize, sources }: InspectedImage,
  { sessionDirectory, politeness, journal, reporter, signal }: LocateRequest,
): Promise<string | undefined> {
  if (!sources.some((source) => source.kind === 'view')) return undefined;
  reporter.debug(
    image.nbdExport === undefined
      ? `disk ${target}: QEMU has to decode it (compressed, or a format of its own): read through a raw view`
      : `disk ${target}: QEMU serves it, as it was then: read through a raw view`,
  );
  const mountpoint = path.join(sessionDirectory, `${target}.raw`);
  const logFile = path.join(sessionDirectory, LOG_NAME);
  const { path: view } = await startRawView({
    layers,
    virtualSize,
    mountpoint,
    logFile,
    politeness,
    journal,
    signal,
  });
  return view;
}

/** Inode numbers come from the targets' names alone; see `diskPart`. */
function checkInodes(disks: readonly FrozenSourceDisk[]): void {
  const byPart = new Map<number, string>();
  for (const { target } of disks) {
    const other = byPart.get(diskPart(target));
    if (other !== undefined) {
      throw failed(
        `disks ${other} and ${target} cannot be in one tree: their inode numbers would be the same`,
        {
          hint: `back one of them up under another name: --exclude=${target}`,
        },
      );
    }
    byPart.set(diskPart(target), target);
  }
}
