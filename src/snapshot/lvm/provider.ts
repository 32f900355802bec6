import { failed } from '../../errors.js';
import type { Disk } from '../../libvirt/domain.js';
import { findQemu } from '../../libvirt/qemu-process.js';
import { diskRefusal } from '../disk-refusal.js';
import { imageOf } from '../none.js';
import { pauseUndo, whilePaused } from '../pause.js';
import type { FrozenDisk, Snapshot, SnapshotProvider, SnapshotRequest } from '../provider.js';
import { bytesOf, DEFAULT_SNAPSHOT_SIZE, sizeArguments } from '../snapshot-size.js';
import { LVM_KIND } from '../watched-kinds.js';
import {
  createThick,
  createThin,
  deviceWithPool,
  type LogicalVolume,
  spaceInGroup,
  type VolumeWithPool,
  volumeByName,
} from './logical-volume.js';
import { type LvmRecord, lvmUndo } from './undo.js';

/** As virt-backup had it; the largest that LVM allows, so that a snapshot of a large volume has few exceptions to keep. */
const THICK_CHUNK_KIB = 512;

/** A pool that is full stops all the guests on it, so nothing more is put into one that nearly is. */
const POOL_FULL_PERCENT = 95;
const POOL_WARN_PERCENT = 80;

interface Preparation {
  readonly disk: Disk;
  readonly origin: LogicalVolume;
  /** The thin pool that it is in. */
  readonly pool: LogicalVolume | undefined;
  readonly name: string;
}

type RefusalRequest = Parameters<SnapshotProvider['refusal']>[0];

function percentFull(pool: LogicalVolume | undefined): number {
  return Math.max(pool?.usedPercent ?? 0, pool?.metadataPercent ?? 0);
}

async function volumeRefusal(
  { volume, pool }: VolumeWithPool,
  signal?: AbortSignal,
): Promise<string | undefined> {
  const name = `${volume.group}/${volume.name}`;
  if (volume.thickSnapshot) return `${name} is a thick snapshot itself, of which LVM makes none`;
  if (volume.segment !== 'thin') {
    return (await spaceInGroup(volume.group, signal)).free > 0
      ? undefined
      : `the volume group ${volume.group} has no space left`;
  }
  const full = percentFull(pool);
  return full >= POOL_FULL_PERCENT
    ? `the thin pool ${volume.group}/${volume.pool} is ${full} % full`
    : undefined;
}

async function refusal({ signal }: RefusalRequest, disk: Disk): Promise<string | undefined> {
  const because = (reason: string | undefined) =>
    reason === undefined ? undefined : `disk ${disk.target}: ${reason}`;
  const general = diskRefusal(disk);
  if (general !== undefined) return because(general);
  if ((disk.backing ?? []).length > 0)
    return because('it has a backing file, which would have to be frozen too');
  const found = await deviceWithPool(disk.path!, { signal });
  if (found === undefined) return because(`${disk.path} is no logical volume`);
  return because(await volumeRefusal(found, signal));
}

async function prepare(request: SnapshotRequest): Promise<Preparation[]> {
  const prepared: Preparation[] = [];
  for (const disk of request.disks) {
    const found = await deviceWithPool(disk.path!, { signal: request.signal });
    if (found === undefined) throw failed(`disk ${disk.target}: ${disk.path} is no logical volume`);
    const { volume: origin, pool } = found;
    prepared.push({ disk, origin, pool, name: `cm-${request.sessionId}-${disk.target}` });
  }
  await checkSpace(request, prepared);
  return prepared;
}

async function checkSpace(request: SnapshotRequest, prepared: readonly Preparation[]): Promise<void> {
  const { reporter, signal, options } = request;
  const needed = new Map<string, number>();
  for (const { origin, pool } of prepared) {
    const full = percentFull(pool);
    if (full >= POOL_WARN_PERCENT)
      reporter.warn(`the thin pool ${origin.group}/${origin.pool} is ${full} % full`);
    if (origin.segment === 'thin') continue;
    const { extentSize } = await spaceInGroup(origin.group, signal);
    const bytes = bytesOf(options.snapshotSize ?? DEFAULT_SNAPSHOT_SIZE, {
      size: origin.size,
      extentSize,
      chunkSize: THICK_CHUNK_KIB * 1024,
    });
    needed.set(origin.group, (needed.get(origin.group) ?? 0) + bytes);
  }
  for (const [group, bytes] of needed) {
    const { free } = await spaceInGroup(group, signal);
    if (free >= bytes) continue;
    const mib = (value: number) => `${Math.floor(value / 2 ** 20)} MiB`;
    throw failed(`the volume group ${group} has ${mib(free)} left, and the snapshots need ${mib(bytes)}`, {
      hint: 'make smaller snapshots (--snapsize=2G), back up fewer disks at once (--exclude), or add space (vgextend)',
      details: { group, free, needed: bytes },
    });
  }
}

async function create(request: SnapshotRequest, { disk, origin, name }: Preparation): Promise<FrozenDisk> {
  const { journal, options, reporter, signal } = request;
  const thin = origin.segment === 'thin';
  const record: LvmRecord = {
    session: request.sessionId,
    target: disk.target,
    group: origin.group,
    name,
    origin: { name: origin.name, uuid: origin.uuid },
    thin,
  };
  const entry = journal.intend(LVM_KIND, { ...record });
  if (thin) await createThin({ origin, name, reporter, signal });
  else
    await createThick(
      { origin, name, reporter, signal },
      sizeArguments(options.snapshotSize ?? DEFAULT_SNAPSHOT_SIZE),
      THICK_CHUNK_KIB,
    );
  const made = await volumeByName(origin.group, name, signal);
  if (made === undefined) throw failed(`LVM made no snapshot ${origin.group}/${name}, and did not say so`);
  journal.done(entry, { uuid: made.uuid });
  return { target: disk.target, image: { path: made.device, format: imageOf(disk).format } };
}

/** One raw volume is one write order: crash consistent as it is. Several, or QEMU's caches of a qcow2, have to stand still. */
function needsPause({ domain }: SnapshotRequest, prepared: readonly Preparation[]): boolean {
  return (
    domain.active && (prepared.length > 1 || prepared.some(({ disk }) => imageOf(disk).format !== 'raw'))
  );
}

async function freeze(request: SnapshotRequest): Promise<Snapshot> {
  const { virsh, domain, journal, reporter } = request;
  const prepared = await prepare(request);
  const disks: FrozenDisk[] = [];
  const createAll = async () => {
    for (const one of prepared) disks.push(await create(request, one));
  };
  const time = new Date();
  if (!needsPause(request, prepared)) {
    await createAll();
  } else {
    const qemu = findQemu(domain);
    if (qemu === undefined) throw failed(`the QEMU process of ${domain.name} is not found on this host`);
    const stood = await whilePaused({ virsh, domain, qemu, journal }, createAll);
    reporter.notice(`${domain.name} was paused for ${Math.round(stood)} ms`);
  }
  return { time, consistency: domain.active ? 'crash' : 'offline', disks };
}

/** Snapshots of logical volumes, thick or thin, read-only; the VM goes on with its volumes. Undone by removing them. */
export const lvmProvider: SnapshotProvider = {
  kind: 'lvm',
  refusal,
  freeze,
  undo: { ...lvmUndo, ...pauseUndo },
};
