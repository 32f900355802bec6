import { failed, usage } from '../errors.js';
import type { ImageReference } from '../image/image-reference.js';
import { domainXml, loadDomain } from '../libvirt/load-domain.js';
import { Virsh } from '../libvirt/virsh.js';
import type { Reporter } from '../report/reporter.js';
import type { Journal } from '../session/journal.js';
import { holdImages } from '../snapshot/hold.js';
import type { Snapshot } from '../snapshot/provider.js';
import { chooseProviders, selectDisks } from '../snapshot/select.js';
import type { BackupSettings } from './settings.js';
import type { FrozenSource, Source } from './source.js';

export interface FreezeRequest {
  readonly source: Source;
  readonly settings: BackupSettings;
  readonly sessionId: string;
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
  return source.kind === 'vm' ? freezeDomain(request, source) : freezeImages(request, source);
}

async function freezeDomain(
  request: FreezeRequest,
  { name, amongOthers = false }: Extract<Source, { kind: 'vm' }>,
): Promise<FrozenSource> {
  const { settings, reporter, signal, journal, sessionId } = request;
  const virsh = new Virsh({ connect: settings.connect, signal });
  const domain = await loadDomain(virsh, name);
  const targets = new Set(domain.disks.map(({ target }) => target));
  const exclude = settings.exclude.filter((target) => !amongOthers || targets.has(target));
  const disks = selectDisks(domain, { exclude, reporter });
  const groups = await chooseProviders({
    virsh,
    domain,
    disks,
    snapshot: settings.snapshot,
    reporter,
    signal,
  });
  const xml = await domainXml(virsh, name);
  const options = { quiesce: settings.quiesce, overlayDirectory: settings.overlayDirectory };
  const snapshots: { kind: string; snapshot: Snapshot }[] = [];
  for (const { provider, disks: group } of groups) {
    const frozen = { virsh, domain, disks: group, sessionId, options, journal, reporter, signal };
    snapshots.push({ kind: provider.kind, snapshot: await provider.freeze(frozen) });
  }
  const order = new Map(disks.map((disk, position) => [disk.target, position]));
  const buses = new Map(disks.map((disk) => [disk.target, disk.bus]));
  return {
    uuid: domain.uuid,
    time: snapshots[0]!.snapshot.time,
    consistency: snapshots[0]!.snapshot.consistency,
    xml,
    nvram: domain.nvram,
    disks: snapshots
      .flatMap(({ kind, snapshot }) =>
        snapshot.disks.map(({ target, image }) => ({
          target,
          image,
          bus: buses.get(target) ?? null,
          snapshot: kind,
        })),
      )
      .sort((a, b) => order.get(a.target)! - order.get(b.target)!),
  };
}

/** The disks of `--image` that are not excluded. Their numbers stay, and so do the inode numbers made of them. */
function chosenImages({ name, images }: ImagesSource, exclude: readonly string[]): TargetImage[] {
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
    disks: chosen.map((disk) => ({ ...disk, bus: null, snapshot: 'none' })),
  };
}
