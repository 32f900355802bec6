import * as fs from 'node:fs';
import * as path from 'node:path';
import * as v from 'valibot';
import { failed } from '../errors.js';
import { fsyncDirectory } from '../host/durable.js';
import { loadDescription } from '../libvirt/load-domain.js';
import { findQemu } from '../libvirt/qemu-process.js';
import { Virsh } from '../libvirt/virsh.js';
import type { JournalEntry } from '../session/journal.js';
import type { UndoContext, UndoHandler } from '../session/undo.js';
import { identityOf, imageIdentity, isSameImage } from '../snapshot/image-identity.js';
import { holdsOpen } from '../snapshot/open-files.js';
import { watchJob } from '../snapshot/overlay/commit-job.js';
import { backingOf } from '../snapshot/qemu-image.js';
import { domainReferringTo } from '../snapshot/references.js';
import { type Layer, type LiveDisk, updateLiveDisk } from './live-chain.js';
import { pathsOf } from './live-check.js';
import { type ConsolidateRequest, disksWithLayers, qemuOf } from './merge-layers.js';

export const PULL_KIND = 'chain-pull';

const PULL_TIMEOUT_MS = 90_000;
const DEFAULT_TIMEOUT_MS = 60 * 60 * 1000;

const schema = v.object({
  connect: v.optional(v.string()),
  domain: v.object({ name: v.string(), uuid: v.string() }),
  liveFile: v.string(),
  target: v.string(),
  base: v.string(),
  top: v.string(),
  lower: v.array(v.object({ path: v.string(), identity: imageIdentity })),
});

type Pull = v.InferOutput<typeof schema>;

/** Waits for the job on the disk, if there is one. */
async function untilIdle({ domain, target }: Pull, virsh: Virsh, context: UndoContext): Promise<void> {
  if ((await virsh.blockJob(domain.uuid, target)) === undefined) return;
  const deadline = performance.now() + (context.commitTimeoutMs ?? DEFAULT_TIMEOUT_MS);
  const { uuid, name } = domain;
  await watchJob({ virsh, reporter: context.reporter, uuid, name, target, deadline });
}

/** Whether the newest layer lies on the base, with nothing of ours between. */
async function isPulled({ domain, target, top, base }: Pull, virsh: Virsh): Promise<boolean> {
  if (!(await virsh.list('active')).some(({ uuid }) => uuid === domain.uuid)) {
    return fs.existsSync(top) && (await backingOf(top))?.path === base;
  }
  const { disks } = await loadDescription(virsh, domain.uuid);
  const disk = disks.find((one) => one.target === target);
  const paths = disk === undefined ? [] : pathsOf(disk);
  const at = paths.indexOf(top);
  return disk?.mirror === undefined && at >= 0 && paths[at + 1] === base;
}

/** Removes a layer, once it is certain that it is ours and nobody needs it. */
async function removeLayer({ path: file, identity }: Layer, { domain }: Pull, virsh: Virsh): Promise<void> {
  const now = identityOf(file);
  if (now === undefined) return;
  if (!isSameImage(now, identity))
    throw failed(`${file} is not the file that was made as a layer`, { hint: 'it is left alone' });
  const user = await domainReferringTo(virsh, file);
  if (user !== undefined)
    throw failed(`${user} still refers to ${file}`, { hint: `see virsh dumpxml ${user}; then run it again` });
  const known = (await virsh.list()).some(({ uuid }) => uuid === domain.uuid);
  const qemu = findQemu(
    known ? await loadDescription(virsh, domain.uuid) : { ...domain, qemuUser: undefined },
  );
  if (qemu !== undefined && holdsOpen(qemu, identity)) {
    throw failed(`${domain.name} still has ${file} open`, { hint: 'run it again later' });
  }
  fs.unlinkSync(file);
  fsyncDirectory(path.dirname(file));
}

/** Removes what was pulled. Returns whether it was: a pull that did not end changed nothing that the VM sees. */
async function finish(entry: JournalEntry, virsh: Virsh, context: UndoContext): Promise<boolean> {
  const pull = v.parse(schema, entry.data);
  if ((await virsh.list('active')).some(({ uuid }) => uuid === pull.domain.uuid))
    await untilIdle(pull, virsh, context);
  if (!(await isPulled(pull, virsh))) return false;
  for (const layer of pull.lower) await removeLayer(layer, pull, virsh);
  const gone = new Set(pull.lower.map((layer) => layer.path));
  updateLiveDisk(pull.liveFile, pull.target, (disk) => ({
    ...disk,
    layers: disk.layers.filter((layer) => !gone.has(layer.path)),
  }));
  return true;
}

async function pullDisk(request: ConsolidateRequest, disk: LiveDisk): Promise<string[]> {
  const { virsh, domain, journal, liveFile } = request;
  const lower = disk.layers.slice(0, -1);
  if (lower.length === 0) return [];
  await qemuOf(request);
  const { name, uuid } = domain;
  const { connect } = virsh.options;
  const top = disk.layers.at(-1)!.path;
  const base = disk.base.path;
  const { target } = disk;
  const entry = journal.intend(PULL_KIND, {
    connect,
    domain: { name, uuid },
    liveFile,
    target,
    base,
    top,
    lower,
  });
  await virsh.call('blockpull', ['--domain', uuid, '--path', target, '--base', base], PULL_TIMEOUT_MS);
  if (!(await finish(entry, virsh, request))) {
    throw failed(`the layers of disk ${target} of ${name} could not be pulled into ${top}`, {
      hint: 'the VM runs on and nothing is lost; is there space where it lies? then run it again',
    });
  }
  journal.undone(entry);
  return lower.map((layer) => layer.path);
}

/**
 * Copies all layers of ours up into the newest, which then lies on the image that was there before us, and removes them. Returns the
 * files that went.
 */
export async function pullLayers(request: ConsolidateRequest): Promise<string[]> {
  const gone: string[] = [];
  for (const disk of await disksWithLayers(request)) {
    request.signal?.throwIfAborted();
    gone.push(...(await pullDisk(request, disk)));
  }
  return gone;
}

const undoPull: UndoHandler = async (entry, context) => {
  const { connect, domain } = v.parse(schema, entry.data);
  const virsh = new Virsh({ connect, signal: context.signal });
  if (await finish(entry, virsh, context)) return;
  context.reporter.notice(
    `${domain.name}: a pull of layers did not end; they stay, and the next one merges them`,
  );
};

export const pullUndo = { [PULL_KIND]: undoPull };
