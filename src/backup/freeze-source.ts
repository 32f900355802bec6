import * as path from 'node:path';
import { failed, usage } from '../errors.js';
import type { ImageReference } from '../image/image-reference.js';
import { loadDomainByUuid } from '../libvirt/load-domain.js';
import { Virsh } from '../libvirt/virsh.js';
import type { Reporter } from '../report/reporter.js';
import type { Journal } from '../session/journal.js';
import { freezeDomain } from '../snapshot/freeze-domain.js';
import { holdImages } from '../snapshot/hold.js';
import type { SnapshotOptions } from '../snapshot/provider.js';
import { keptCheckpoints } from './kept-snapshots.js';
import type { BackupSettings } from './settings.js';
import type { FrozenSource, Source } from './source.js';

export interface FreezeRequest {
  readonly source: Source;
  readonly settings: BackupSettings;
  readonly sessionId: string;
  /** Trackers look at what is frozen, and what they need may be left for the next session. */
  readonly tracked: boolean;
  readonly journal: Journal;
  readonly reporter: Reporter;
  readonly signal?: AbortSignal | undefined;
}

type ImagesSource = Extract<Source, { kind: 'images' }>;

interface TargetImage {
  readonly target: string;
  readonly image: ImageReference;
}

/** Brings all disks of a source to a standstill at one point in time. What it did to the host is in the journal, also when it throws. */
export function freezeSource(request: FreezeRequest): Promise<FrozenSource> {
  const { source } = request;
  return source.kind === 'vm' ? freezeVm(request, source) : freezeImages(request, source);
}

async function freezeVm(
  request: FreezeRequest,
  { name, amongOthers = false }: Extract<Source, { kind: 'vm' }>,
): Promise<FrozenSource> {
  const { settings, reporter, signal, journal, sessionId } = request;
  const virsh = new Virsh({ connect: settings.connect, signal });
  const { uuid } = await virsh.find(name);
  // For the backup: the definition, without secrets such as display passwords.
  const [domain, xml] = await Promise.all([
    loadDomainByUuid(virsh, uuid),
    virsh.dumpXml(uuid, { inactive: true }),
  ]);
  const targets = new Set(domain.disks.map(({ target }) => target));
  const exclude = settings.exclude.filter((target) => !amongOthers || targets.has(target));
  const memory = settings.memory ? path.join(path.dirname(journal.file), 'memory') : undefined;
  const { quiesce, overlayDirectory, snapshotSize, snapshot, pause, shutdown } = settings;
  const { time, consistency, disks } = await freezeDomain({
    virsh,
    domain,
    exclude,
    snapshot,
    pause,
    shutdown,
    sessionId,
    options: {
      quiesce,
      overlayDirectory,
      snapshotSize,
      memoryFile: memory,
      checkpoints: checkpointsFor(request),
    },
    journal,
    reporter,
    signal,
  });
  return {
    uuid: domain.uuid,
    time,
    consistency,
    xml,
    nvram: domain.nvram,
    memory,
    disks: disks.map(({ target, image, bus, kind }) => ({ target, image, bus, snapshot: kind })),
  };
}

/** What a backup job is to do for the tracker that goes on from checkpoints. */
function checkpointsFor({ source, settings, tracked }: FreezeRequest): SnapshotOptions['checkpoints'] {
  const { tracking, state } = settings;
  if (!tracked || (tracking.track !== 'auto' && tracking.track !== 'bitmap')) return undefined;
  return { since: tracking.fullScan ? new Map() : keptCheckpoints({ name: source.name, state }) };
}

/** The disks of `--image` that are not excluded. Their numbers stay, and so do the inode numbers made of them. */
export function chosenImages({ name, images }: ImagesSource, exclude: readonly string[]): TargetImage[] {
  const all = images.map((image, position) => ({ target: `disk${position}`, image }));
  const unknown = exclude.filter((target) => !all.some((disk) => disk.target === target));
  if (unknown.length > 0) {
    throw usage(`${name} has no disk ${unknown.join(', ')} to exclude`, {
      hint: `its disks are ${all.map(({ target }) => target).join(', ')}`,
    });
  }
  const chosen = all.filter(({ target }) => !exclude.includes(target));
  if (chosen.length > 0) return chosen;
  throw failed(`${name} has no disk to back up`, { hint: 'exclude fewer of its disks' });
}

async function freezeImages(
  { journal, signal, settings }: FreezeRequest,
  source: ImagesSource,
): Promise<FrozenSource> {
  const chosen = chosenImages(source, settings.exclude);
  await holdImages({ images: chosen.map(({ image }) => image.path), journal, signal });
  return {
    uuid: null,
    time: new Date(),
    consistency: 'offline',
    xml: undefined,
    nvram: undefined,
    memory: undefined,
    disks: chosen.map((disk) => ({ ...disk, bus: null, snapshot: 'none' })),
  };
}
