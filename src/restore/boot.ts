import * as fs from 'node:fs';
import * as path from 'node:path';
import { usage } from '../errors.js';
import type { TransportKind } from '../fuse/transport.js';
import { run } from '../host/exec.js';
import { Virsh } from '../libvirt/virsh.js';
import type { Reporter } from '../report/reporter.js';
import type { Journal } from '../session/journal.js';
import type { StateDirectory } from '../session/state-directory.js';
import { makeBootDomain } from './boot-domain.js';
import { makeBootFile } from './boot-file.js';
import { makeBootMount } from './boot-mount.js';
import { BOOT, type BootRecord, withBoot } from './boot-state.js';
import { giveUpBoot } from './boot-undo.js';
import { imagePath } from './image-mount-config.js';
import { openSource } from './open-source.js';
import { identifyDisk } from './partial-file.js';
import { Tree } from './tree.js';
import { copyExtra } from './tree-extra.js';
import { filesOf, planVm, type VmPlan } from './vm-plan.js';

export interface BootRequest {
  /** A tree's directory. */
  readonly tree: string;
  /** `<name>-boot` if undefined. */
  readonly name: string | undefined;
  /** Directory for overlays and the mount of the images. */
  readonly storage: string;
  readonly network: boolean;
  readonly transport: TransportKind;
  readonly state: StateDirectory;
  readonly connect: string | undefined;
}

export interface BootContext {
  readonly reporter: Reporter;
  /** Stop, and undo what has been begun. */
  readonly signal: AbortSignal;
  /** Stop undoing, too; what is left stays for `boot --discard`. */
  readonly insisted: AbortSignal;
}

export interface BootedVm {
  readonly name: string;
  readonly uuid: string;
  readonly mountpoint: string;
  readonly disks: readonly { readonly target: string; readonly overlay: string }[];
}

/**
 * Starts a VM from a tree without restoring it: on qcow2 overlays over the tree's images, which are mounted for it. Returns when it
 * runs. The tree must stay as it is until the VM is finished or discarded. When this throws, nothing is left, or a warning says so.
 */
export async function bootTree(request: BootRequest, context: BootContext): Promise<BootedVm> {
  const { reporter, signal } = context;
  const virsh = new Virsh({ connect: request.connect, signal });
  const tree = Tree.open(request.tree);
  try {
    const { storage, network, name } = request;
    const otherwise = `${tree.manifest.name}-boot`;
    const vm = { tree, name, otherwise, storage, network } as const;
    const plan = await planVm(
      virsh,
      { ...vm, sameIdentity: false, format: 'qcow2', overlay: true },
      reporter,
    );
    const record = await describeBoot(tree, plan, request.connect);
    for (const file of [...filesOf(plan), record.mountpoint]) refuseExisting(file);
    return await withBoot(request.state, plan.name, { create: true }, async ({ journal, log, remove }) => {
      try {
        const { transport } = request;
        await buildBoot({ tree, plan, record, journal, log, transport, virsh, signal });
        signal.throwIfAborted();
      } catch (error) {
        await giveUpBoot(plan.name, { journal, reporter, signal: context.insisted }, remove);
        throw error;
      }
      const disks = record.disks.map(({ target, overlay }) => ({ target, overlay }));
      return { name: plan.name, uuid: plan.uuid, mountpoint: record.mountpoint, disks };
    });
  } finally {
    tree.close();
  }
}

/** What is to be made. Reads the sums of all disks: damaged ones show here, before anything is. */
export async function describeBoot(
  tree: Tree,
  plan: VmPlan,
  connect: string | undefined,
): Promise<BootRecord> {
  const { name, uuid, storage } = plan;
  const mountpoint = path.join(storage, `${name}.images`);
  const disks = [];
  for (const { target, file: overlay } of plan.disks) {
    const source = await openSource(tree, target);
    try {
      const image = imagePath(mountpoint, target);
      disks.push({ target, overlay, image, source: await identifyDisk(source) });
    } finally {
      source.close();
    }
  }
  const where = connect === undefined ? {} : { connect };
  return { name, uuid, ...where, tree: tree.root, mountpoint, begun: new Date().toISOString(), disks };
}

function refuseExisting(file: string): void {
  if (fs.lstatSync(file, { throwIfNoEntry: false }) === undefined) return;
  throw usage(`${file} exists`, { hint: 'give another --name or --storage' });
}

export interface BuildRequest {
  readonly tree: Tree;
  readonly plan: VmPlan;
  readonly record: BootRecord;
  readonly journal: Journal;
  readonly log: string;
  readonly transport: TransportKind;
  readonly virsh: Virsh;
  readonly signal: AbortSignal;
}

/** Makes everything, with a record in the journal before and after each change. Undoes nothing when it fails. */
export async function buildBoot(request: BuildRequest): Promise<void> {
  const { tree, plan, record, journal, log, transport, virsh, signal } = request;
  const { connect } = virsh.options;
  const { mountpoint } = record;
  journal.intend(BOOT, record);
  await makeBootMount(journal, { tree: tree.root, mountpoint, log, transport, signal });
  for (const { overlay, image } of record.disks) {
    signal.throwIfAborted();
    const fill = (_fd: number, file: string) => createOverlay(file, image, signal);
    await makeBootFile({ file: overlay, connect, journal, fill });
  }
  if (plan.nvram !== undefined) {
    const { file, extra } = plan.nvram;
    const fill = (fd: number) => copyExtra(tree, extra, fd, { signal });
    await makeBootFile({ file, connect, journal, fill });
  }
  const { name, uuid, xml } = plan;
  await makeBootDomain({ name, uuid, xml, ownNvram: plan.nvram !== undefined, virsh, journal });
}

/** The size is that of the image. */
async function createOverlay(file: string, image: string, signal: AbortSignal): Promise<void> {
  await run('qemu-img', ['create', '-q', '-f', 'qcow2', '-F', 'raw', '-b', image, file], { signal });
}
