import * as fs from 'node:fs';
import * as path from 'node:path';
import { failed, messageOf } from '../errors.js';
import { fsyncDirectory, replaceFile } from '../host/durable.js';
import { defineForeign, startDomain } from '../libvirt/domain-lifecycle.js';
import type { Virsh } from '../libvirt/virsh.js';
import { dataBytes } from './data-bytes.js';
import { checkReplaceable, checkRoom } from './define-checks.js';
import { FinishedImages } from './finished-images.js';
import { openSource } from './open-source.js';
import { identifyDisk } from './partial-file.js';
import { type RestoreResult, restoreDisk } from './restore-disk.js';
import type { RestoreContext } from './restore-request.js';
import { checkResumable, resumeMemory } from './resume-memory.js';
import type { Compression } from './to-qcow2.js';
import type { Tree } from './tree.js';
import { copyExtra } from './tree-extra.js';
import { planVm, type VmPlan } from './vm-plan.js';

export interface DefineRequest {
  /** The name in the backup if undefined. */
  readonly name: string | undefined;
  /** Directory for the images. */
  readonly storage: string;
  readonly format: 'raw' | 'qcow2';
  readonly compression?: Compression | undefined;
  /** Keep UUID and MAC addresses. */
  readonly sameIdentity: boolean;
  /** Network cables are plugged in. */
  readonly network: boolean;
  /** Replace existing files that no VM has; go on where room may not do. */
  readonly force: boolean;
  readonly keepGoing: boolean;
  /** `resume`: with the memory that is in the tree. */
  readonly afterwards: 'nothing' | 'start' | 'resume';
}

export interface DefinedVm {
  readonly name: string;
  readonly uuid: string;
  /** Those restored by this call. */
  readonly disks: readonly RestoreResult[];
  readonly nvram: string | null;
  readonly running: boolean;
}

interface Job extends RestoreContext {
  readonly tree: Tree;
  readonly request: DefineRequest;
  readonly virsh: Virsh;
}

/**
 * Restores all disks of a tree and defines its VM on them. Everything that can be checked is, before anything is written. When only
 * libvirt refuses the VM in the end, its images and its definition stay, and the error says how to go on. Throws as restoreDisk
 * does, too; after an interruption the same call goes on.
 */
export async function defineFromTree(
  tree: Tree,
  request: DefineRequest,
  context: RestoreContext & { readonly virsh: Virsh },
): Promise<DefinedVm> {
  const job: Job = { ...context, tree, request };
  const plan = await prepare(job);
  const record = new FinishedImages(plan.storage, plan.name);
  const pending = await pendingDisks(job, plan, record);
  const disks: RestoreResult[] = [];
  for (const { target, file, source } of pending) {
    const result = await restoreOne(job, target, file);
    disks.push(result);
    if (result.damageCount === 0) record.add(file, source);
  }
  if (plan.nvram !== undefined) {
    // Something may have come there while the disks were restored.
    await checkNvram(job, plan.nvram, record);
    await restoreNvram(job, plan.nvram);
    record.add(plan.nvram.file, NVRAM);
  }
  await define(job, plan, record);
  record.remove();
  const { name, uuid } = plan;
  if (request.afterwards === 'start') await start(job, plan);
  if (request.afterwards === 'resume') await resumeMemory({ ...job, plan });
  return { name, uuid, disks, nvram: plan.nvram?.file ?? null, running: request.afterwards !== 'nothing' };
}

async function prepare({ tree, request, virsh, reporter }: Job): Promise<VmPlan> {
  const { name, storage, format, network, afterwards } = request;
  const resume = afterwards === 'resume';
  if (resume) checkResumable(tree, name);
  const sameIdentity = request.sameIdentity || resume;
  const otherwise = tree.manifest.name;
  return planVm(
    virsh,
    { tree, name, otherwise, storage, sameIdentity, format, network, overlay: false },
    reporter,
  );
}

/** In place of a disk's source in the record; no disk has this one. */
const NVRAM = 'nvram';

interface PendingDisk {
  readonly target: string;
  readonly file: string;
  /** See identifyDisk. */
  readonly source: string;
}

/** The disks that are still to be restored, in order. Throws when one cannot be, or if there is no room for them. */
async function pendingDisks(job: Job, plan: VmPlan, record: FinishedImages): Promise<PendingDisk[]> {
  const { tree, request, virsh, reporter } = job;
  const pending: PendingDisk[] = [];
  const sizes: number[] = [];
  for (const { target, file } of plan.disks) {
    const source = await openSource(tree, target, { evenWithoutSums: request.keepGoing });
    try {
      const identity = await identifyDisk(source);
      if (record.has(file, identity)) {
        // What cut that run off may have been late: the VM may be there, under another name by now.
        await checkReplaceable(virsh, file, true);
        reporter.notice(`${target} has been restored to ${file} before`);
        continue;
      }
      await checkReplaceable(virsh, file, request.force);
      pending.push({ target, file, source: identity });
      sizes.push(dataBytes(source));
    } finally {
      source.close();
    }
  }
  if (plan.nvram !== undefined) await checkNvram(job, plan.nvram, record);
  // A qcow2 image is made of a raw one beside it.
  const beside = request.format === 'qcow2' ? Math.max(0, ...sizes) : 0;
  const total = sizes.reduce((sum, size) => sum + size, beside);
  if (!request.force) checkRoom(plan.storage, total);
  return pending;
}

async function restoreOne(job: Job, target: string, to: string): Promise<RestoreResult> {
  const { tree, reporter, signal } = job;
  const { format, compression, force, keepGoing } = job.request;
  const request = { to, format, compression, force, keepGoing, delta: false };
  return restoreDisk(tree, target, request, { reporter, signal });
}

/** It is small: one of an earlier run is made anew. */
async function checkNvram(
  { virsh, request }: Job,
  { file }: NonNullable<VmPlan['nvram']>,
  record: FinishedImages,
): Promise<void> {
  await checkReplaceable(virsh, file, request.force || record.has(file, NVRAM));
}

async function restoreNvram(job: Job, { extra, file }: NonNullable<VmPlan['nvram']>): Promise<void> {
  const temporary = `${file}.${process.pid}.tmp`;
  const fd = fs.openSync(temporary, 'wx', 0o600);
  try {
    try {
      await copyExtra(job.tree, extra, fd, { signal: job.signal });
    } finally {
      fs.closeSync(fd);
    }
    fs.renameSync(temporary, file);
  } catch (error) {
    fs.rmSync(temporary, { force: true });
    throw error;
  }
  fsyncDirectory(path.dirname(file));
}

function unusedName(directory: string, name: string, suffix: string): string {
  for (let i = 0; ; i++) {
    const file = path.join(directory, `${name}${i === 0 ? '' : `-${i}`}${suffix}`);
    if (fs.lstatSync(file, { throwIfNoEntry: false }) === undefined) return file;
  }
}

async function define({ virsh, signal }: Job, plan: VmPlan, record: FinishedImages): Promise<void> {
  try {
    await defineForeign(virsh, plan.xml);
  } catch (error) {
    if (signal.aborted) {
      throw failed(`the disks of ${plan.name} are restored, but it is not defined: ${messageOf(error)}`, {
        hint: 'run the same command again',
        cause: error,
      });
    }
    record.remove();
    const file = unusedName(plan.storage, plan.name, '.xml');
    replaceFile(file, plan.xml);
    throw failed(
      `the disks of ${plan.name} are restored, but libvirt refuses its definition: ${messageOf(error)}`,
      {
        hint: `it is in ${file}: change what libvirt does not like, then: virsh define ${file}`,
        cause: error,
      },
    );
  }
}

async function start({ virsh }: Job, { name, uuid }: VmPlan): Promise<void> {
  try {
    await startDomain(virsh, uuid);
  } catch (error) {
    throw failed(`${name} is restored and defined, but does not start: ${messageOf(error)}`, {
      hint: `mend that (virsh edit ${name}), then: virsh start ${name}`,
      cause: error,
    });
  }
}
