import * as v from 'valibot';
import { failed } from '../errors.js';
import type { ProcessIdentity } from '../host/process-identity.js';
import { loadDescription, loadDomainByUuid } from '../libvirt/load-domain.js';
import { findQemu } from '../libvirt/qemu-process.js';
import type { Virsh } from '../libvirt/virsh.js';
import type { JournalData, JournalEntry } from '../session/journal.js';
import type { UndoContext, UndoHandler } from '../session/undo.js';
import { identityOf, isSameImage } from '../snapshot/image-identity.js';
import { type OverlayRecord, readOverlayRecord } from '../snapshot/overlay/record.js';
import { undoOverlay } from '../snapshot/overlay/undo.js';
import { OVERLAY_KIND } from '../snapshot/watched-kinds.js';
import { type Layer, type LiveDisk, readLiveChain, updateLiveDisk } from './live-chain.js';
import { changeOf } from './live-check.js';

export const MERGE_KIND = 'chain-merge';

const schema = v.object({ liveFile: v.string(), target: v.string(), overlay: v.string() });

/** A VM whose layers are to be merged. */
export interface ConsolidateRequest extends UndoContext {
  readonly virsh: Virsh;
  readonly domain: { readonly name: string; readonly uuid: string };
  readonly liveFile: string;
  /** Targets of disks that stay as they are. */
  readonly exclude: readonly string[];
}

/** The disks whose layers of ours are to be merged, as they are known; throws unless the VM runs on them as they were left. */
export async function disksWithLayers(request: ConsolidateRequest): Promise<LiveDisk[]> {
  const { virsh, domain, liveFile, exclude } = request;
  const live = readLiveChain(liveFile);
  if (live === undefined || live.uuid !== domain.uuid) return [];
  const layered = live.disks.filter(({ target, layers }) => layers.length > 0 && !exclude.includes(target));
  if (layered.length === 0) return [];
  const now = await loadDomainByUuid(virsh, domain.uuid);
  if (!now.active) {
    throw failed(`${now.name} is ${now.state}: layers are merged while it runs`, {
      hint: 'start it, then run it again',
    });
  }
  for (const known of layered) {
    const disk = now.disks.find(({ target }) => target === known.target);
    const change = disk === undefined ? 'the VM does not have it any more' : changeOf(disk, known);
    if (change === undefined) continue;
    throw failed(`the layers of disk ${known.target} of ${now.name} cannot be merged: ${change}`, {
      hint: `merge or put back what was changed first (virsh domblklist ${now.name}). Nothing was removed`,
      details: { domain: now.name, disk: known.target },
    });
  }
  return layered;
}

export async function qemuOf({ virsh, domain }: ConsolidateRequest): Promise<ProcessIdentity> {
  const qemu = findQemu(await loadDescription(virsh, domain.uuid));
  if (qemu !== undefined) return qemu;
  throw failed(`the QEMU process of ${domain.name} is not found on this host`, {
    hint: 'run chunkmount where the VM runs',
  });
}

async function recordOf(
  request: ConsolidateRequest,
  { base, target }: LiveDisk,
  layer: Layer,
): Promise<OverlayRecord> {
  const { virsh, domain } = request;
  return {
    connect: virsh.options.connect,
    domain: { uuid: domain.uuid, name: domain.name },
    target,
    overlay: layer.path,
    base: { path: base.path, format: base.format, identity: base.identity },
    definition: base.definition,
    qemu: await qemuOf(request),
    file: layer.identity,
    answered: true,
    made: true,
  };
}

async function mergeLayer(request: ConsolidateRequest, disk: LiveDisk, layer: Layer): Promise<void> {
  const { journal, liveFile } = request;
  const merge = journal.intend(MERGE_KIND, { liveFile, target: disk.target, overlay: layer.path });
  const data: JournalData = { ...(await recordOf(request, disk, layer)) };
  const overlay = journal.intend(OVERLAY_KIND, data);
  await undoOverlay(overlay, request);
  journal.undone(overlay);
  await finishMerge(merge, request);
  journal.undone(merge);
}

/**
 * Merges all layers of ours down into the images that they lie on: the lowest first, so that nothing is copied twice, and the one
 * that the VM writes to with a pivot. Each is removed when its content is in the base, by what also ends the sessions of overlays.
 * Returns the files that went.
 */
export async function commitLayers(request: ConsolidateRequest): Promise<string[]> {
  const gone: string[] = [];
  for (const disk of await disksWithLayers(request)) {
    for (const layer of disk.layers) {
      request.signal?.throwIfAborted();
      await mergeLayer(request, disk, layer);
      gone.push(layer.path);
    }
  }
  return gone;
}

/** A layer whose merge was begun: if that ended, it is not known as ours any more. */
const finishMerge: UndoHandler = async (entry: JournalEntry, { journal }) => {
  const { liveFile, target, overlay } = v.parse(schema, entry.data);
  const busy = journal
    .pending()
    .some((pending) => pending.kind === OVERLAY_KIND && readOverlayRecord(pending).overlay === overlay);
  if (busy) throw failed(`the merge of ${overlay} has not ended`, { hint: 'see above, then run it again' });
  updateLiveDisk(liveFile, target, (disk) => {
    const layer = disk.layers.find(({ path }) => path === overlay);
    const now = identityOf(overlay);
    // Nothing had begun.
    if (layer === undefined || (now !== undefined && isSameImage(now, layer.identity))) return disk;
    return { ...disk, layers: disk.layers.filter(({ path }) => path !== overlay) };
  });
};

export const mergeUndo = { [MERGE_KIND]: finishMerge };
