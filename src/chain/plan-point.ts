import * as fs from 'node:fs';
import { failed } from '../errors.js';
import { imageInfo } from '../image/qemu-img.js';
import { diskSource } from '../libvirt/disk-source.js';
import type { Disk, Domain } from '../libvirt/domain.js';
import { loadInactive } from '../libvirt/load-domain.js';
import type { Virsh } from '../libvirt/virsh.js';
import type { Reporter } from '../report/reporter.js';
import { identityOf } from '../snapshot/image-identity.js';
import { imageOf } from '../snapshot/none.js';
import { overlayProvider } from '../snapshot/overlay/provider.js';
import type { ChainRecord } from './chain-record.js';
import { checkCopies } from './check-copies.js';
import type { CopyMethod } from './copy-disk.js';
import type { LiveChain, LiveDisk } from './live-chain.js';
import { changeOf } from './live-check.js';

export interface PlanRequest {
  readonly virsh: Virsh;
  readonly domain: Domain;
  readonly disks: readonly Disk[];
  /** Where the copies are. */
  readonly directory: string;
  readonly live: LiveChain | undefined;
  readonly record: ChainRecord | undefined;
  readonly full: boolean;
  readonly reporter: Reporter;
  readonly signal?: AbortSignal | undefined;
}

export interface DiskPlan {
  readonly disk: Disk;
  readonly method: CopyMethod;
  /** As it is now, before the snapshot. */
  readonly live: LiveDisk;
}

function refused({ domain }: PlanRequest, { target }: Disk, why: string, hint: string): Error {
  return failed(`disk ${target} of ${domain.name} cannot be copied into a chain: ${why}`, {
    hint,
    details: { domain: domain.name, disk: target },
  });
}

const FULL_HINT = 'begin anew with a full copy: --full';

/** Throws unless libvirt and QEMU can put the disk onto another layer for good. */
async function checkDisk(request: PlanRequest, disk: Disk, next: Disk | undefined): Promise<void> {
  const { virsh, domain, signal } = request;
  const exclude = `leave it out: --exclude=${disk.target}`;
  if (
    disk.path !== undefined &&
    fs.statSync(disk.path, { throwIfNoEntry: false })?.isBlockDevice() === true
  ) {
    const why = `it is on the block device ${disk.path}, and a layer for good would have no place beside it`;
    throw refused(request, disk, why, `back it up with mount, run or dump, and ${exclude}`);
  }
  const refusal = await overlayProvider.refusal({ virsh, domain, signal }, disk);
  if (refusal !== undefined) {
    throw failed(`no layer can be put onto ${domain.name}: ${refusal}`, {
      hint: `wait until what works on the VM has ended, or ${exclude}`,
      details: { domain: domain.name, disk: disk.target },
    });
  }
  if (next?.path !== disk.path) {
    const why = `the VM's definition has ${next?.path ?? 'nothing'} there, while it runs on ${disk.path}`;
    throw refused(
      request,
      disk,
      why,
      'shut the VM down and start it again, or mend its definition: virsh edit',
    );
  }
}

async function virtualSizeOf(disk: Disk, signal: AbortSignal | undefined): Promise<number> {
  const { path, format } = imageOf(disk);
  const image = { path, format, device: false, fileSize: fs.statSync(path).size, inUse: true };
  return (await imageInfo(image, signal)).virtualSize;
}

function newLiveDisk(disk: Disk, inactive: string): LiveDisk {
  const { path, format } = imageOf(disk);
  const identity = identityOf(path);
  if (identity === undefined) throw failed(`${path}, the image of disk ${disk.target}, is not on this host`);
  if (format !== 'raw' && format !== 'qcow2')
    throw failed(`the format ${format} of disk ${disk.target} is not supported`);
  const definition = diskSource(inactive, disk.target);
  return { target: disk.target, base: { path, format, identity, definition }, layers: [], copy: null };
}

/** How a disk goes on that has a copy already. Throws when it cannot. */
async function nextMethod(request: PlanRequest, disk: Disk, known: LiveDisk): Promise<CopyMethod> {
  const { directory, record, live, signal, reporter } = request;
  const { copy, target } = known;
  if (copy === null) return { kind: 'full' };
  if (live?.directory !== directory) {
    const why = `its chain is in ${live?.directory}`;
    throw refused(request, disk, why, `give --to as before, or ${FULL_HINT}`);
  }
  const last = record?.points.findLast(({ disks }) => disks.some((one) => one.target === target));
  if (record === undefined || last?.disks.find((one) => one.target === target)?.file !== copy) {
    throw refused(
      request,
      disk,
      `the last copy in ${directory} is not ${copy}`,
      `put that directory back as it was, or ${FULL_HINT}`,
    );
  }
  const hint = `put it back as it was, or ${FULL_HINT}`;
  const [newest] = await checkCopies(directory, record, copy, { hint, thorough: false, reporter, signal });
  const size = await virtualSizeOf(disk, signal);
  if (size !== newest.virtualSize) {
    throw refused(request, disk, `it was resized from ${newest.virtualSize} to ${size} bytes`, FULL_HINT);
  }
  return { kind: known.layers.length > 0 ? 'layer' : 'compare', backing: copy };
}

async function planDisk(request: PlanRequest, disk: Disk, inactive: string): Promise<DiskPlan> {
  const { live, record, domain, full, reporter } = request;
  const known = live?.disks.find(({ target }) => target === disk.target);
  const fresh = () => newLiveDisk(disk, inactive);
  if (known === undefined) {
    const there = record?.points.some(({ disks }) => disks.some(({ target }) => target === disk.target));
    if (there === true && !full) {
      throw refused(
        request,
        disk,
        `nothing is known here of the layers that belong to its copies in ${request.directory}`,
        FULL_HINT,
      );
    }
    return { disk, method: { kind: 'full' }, live: fresh() };
  }
  const change = changeOf(disk, known);
  if (change === undefined) {
    return { disk, method: full ? { kind: 'full' } : await nextMethod(request, disk, known), live: known };
  }
  if (!full) {
    const hint = `merge or put back what was changed (virsh domblklist ${domain.name}, qemu-img info -U --backing-chain), or ${FULL_HINT}. Nothing was removed`;
    throw refused(request, disk, change, hint);
  }
  reporter.warn(
    `disk ${disk.target} of ${domain.name}: ${change}; the layers that are there stay, and are yours from now on`,
  );
  return { disk, method: { kind: 'full' }, live: fresh() };
}

/** How each disk is to be copied. Changes nothing; throws, naming disk and reason, for what cannot be done. */
export async function planPoint(request: PlanRequest): Promise<DiskPlan[]> {
  const { virsh, domain, disks } = request;
  const { name, uuid } = domain;
  if (!domain.persistent) {
    throw failed(`${name} is transient, and would leave its disks in pieces when it stops`, {
      hint: `define it first: virsh dumpxml ${name} > ${name}.xml; virsh define ${name}.xml`,
    });
  }
  if (!domain.active) {
    throw failed(`${name} is ${domain.state}: only a running or paused VM can be put onto a new layer`, {
      hint: 'start it, or copy its disks with mount, run or dump. Its layers stay as they are meanwhile',
    });
  }
  for (const known of [request.live, request.record]) {
    if (known === undefined || known.uuid === uuid) continue;
    throw failed(`there is a chain of another VM called ${name} already (UUID ${known.uuid})`, {
      hint: `give another directory, and move the remains of the old VM away: chains/${name}.json in the state directory`,
    });
  }
  const inactive = await virsh.dumpXml(uuid, { inactive: true });
  const next = await loadInactive(virsh, uuid);
  const plans: DiskPlan[] = [];
  for (const disk of disks) {
    await checkDisk(
      request,
      disk,
      next.disks.find(({ target }) => target === disk.target),
    );
    plans.push(await planDisk(request, disk, inactive));
  }
  return plans;
}
