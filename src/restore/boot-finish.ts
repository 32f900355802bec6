import * as fs from 'node:fs';
import { failed, messageOf } from '../errors.js';
import type { TransportKind } from '../fuse/transport.js';
import { readIfExists } from '../host/durable.js';
import { loadDescription } from '../libvirt/load-domain.js';
import { findQemu } from '../libvirt/qemu-process.js';
import { Virsh } from '../libvirt/virsh.js';
import type { StateDirectory } from '../session/state-directory.js';
import type { UndoContext } from '../session/undo.js';
import { PAUSE_KIND, pauseUndo, whilePaused } from '../snapshot/pause.js';
import { BOOT_DOMAIN } from './boot-domain.js';
import { areImagesThere, BOOT_DIRECTORY, BOOT_MOUNT, bootMountUndo, mountBootImages } from './boot-mount.js';
import { type PullRequest, pullDisk } from './boot-pull.js';
import { type BootRecord, type OpenBoot, withBoot } from './boot-state.js';
import { takeAway } from './image-unmount.js';
import { openSource } from './open-source.js';
import { identifyDisk } from './partial-file.js';
import type { RestoreContext } from './restore-request.js';
import { Tree } from './tree.js';

/** What finishing undoes of a boot. */
const FINISH_UNDO = { ...bootMountUndo, ...pauseUndo };

export interface FinishRequest {
  readonly name: string;
  readonly state: StateDirectory;
  readonly transport: TransportKind;
}

export interface FinishedVm {
  readonly name: string;
  readonly uuid: string;
  /** The images that are whole now. */
  readonly disks: readonly { readonly target: string; readonly file: string }[];
}

/**
 * Makes a booted VM independent of its tree: copies what it lacks into its overlays, while it runs or while it is off, and takes the
 * mount of the images away. Can be stopped at any time and run again.
 */
export async function finishBoot(
  { name, state, transport }: FinishRequest,
  { reporter, signal }: RestoreContext,
): Promise<FinishedVm> {
  return withBoot(state, name, { create: false }, async (boot) => {
    const record = beginningOf(name, boot);
    const virsh = new Virsh({ connect: record.connect, signal });
    if (!(await virsh.list()).some(({ uuid }) => uuid === record.uuid)) {
      throw failed(`the VM ${name} is not there any more`, {
        hint: `remove what is left of it: chunkmount boot --discard ${name}`,
      });
    }
    const showImages = () => showAgain(record, boot, transport, signal);
    const damage = () => lastLine(readIfExists(boot.log));
    const request: PullRequest = { record, virsh, reporter, signal, showImages, damage };
    await undoEntries(boot, [PAUSE_KIND], { reporter, signal });
    for (const disk of record.disks) await pullDisk(request, disk);
    await flush(record, boot, virsh);
    await dropImages(name, boot, { reporter, signal });
    boot.remove();
    const disks = record.disks.map(({ target, overlay: file }) => ({ target, file }));
    return { name, uuid: record.uuid, disks };
  });
}

/** Throws unless the boot had come to the VM itself: all else is there then. */
function beginningOf(name: string, { journal, record }: OpenBoot): BootRecord {
  if (record !== undefined && journal.find(BOOT_DOMAIN) !== undefined) return record;
  throw failed(`${name} was cut off while it was booted`, {
    hint: `remove what there is: chunkmount boot --discard ${name}`,
  });
}

function lastLine(text: string | undefined): string | undefined {
  return text?.trimEnd().split('\n').at(-1) || undefined;
}

/** After a reboot, or when its daemon has died, the mount is made again: of the same backup, or not at all. */
async function showAgain(
  record: BootRecord,
  { log }: OpenBoot,
  transport: TransportKind,
  signal: AbortSignal,
): Promise<void> {
  const { tree, mountpoint } = record;
  if (areImagesThere(mountpoint)) return;
  await takeAway(mountpoint);
  await checkUnchanged(record);
  fs.mkdirSync(mountpoint, { recursive: true, mode: 0o700 });
  await mountBootImages({ tree, mountpoint, log, transport, signal });
}

async function checkUnchanged(record: BootRecord): Promise<void> {
  const tree = Tree.open(record.tree);
  try {
    for (const { target, source: expected } of record.disks) {
      const source = await openSource(tree, target);
      const found = await identifyDisk(source);
      source.close();
      if (found === expected) continue;
      throw failed(
        `${target} of ${record.tree} is not the backup any more that ${record.name} was booted from`,
        {
          hint: `put that backup back there, or throw the VM away: chunkmount boot --discard ${record.name}`,
        },
      );
    }
  } finally {
    tree.close();
  }
}

/**
 * What was copied while the VM ran may be in QEMU's memory still, and with the backup gone, a QEMU that is killed would take it
 * along. It writes everything when it is paused.
 */
async function flush({ name, uuid }: BootRecord, { journal }: OpenBoot, virsh: Virsh): Promise<void> {
  const qemu = findQemu(await loadDescription(virsh, uuid));
  if (qemu !== undefined) await whilePaused({ virsh, domain: { name, uuid }, qemu, journal }, async () => {});
}

async function undoEntries(
  { journal }: OpenBoot,
  kinds: readonly (keyof typeof FINISH_UNDO)[],
  context: Omit<UndoContext, 'journal'>,
): Promise<void> {
  for (const entry of journal.pending()) {
    const kind = kinds.find((one) => one === entry.kind);
    if (kind === undefined) continue;
    await FINISH_UNDO[kind]!(entry, { journal, ...context });
    journal.undone(entry);
  }
}

/** Undoes the mount and its directory, and nothing else. */
async function dropImages(
  name: string,
  boot: OpenBoot,
  context: Omit<UndoContext, 'journal'>,
): Promise<void> {
  try {
    await undoEntries(boot, [BOOT_MOUNT, BOOT_DIRECTORY], context);
  } catch (error) {
    throw failed(`${name} has all of its data, but its images are still mounted: ${messageOf(error)}`, {
      hint: `end what uses them, then run it again: chunkmount boot --finish ${name}`,
      cause: error,
    });
  }
}
