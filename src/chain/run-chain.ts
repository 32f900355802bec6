import * as fs from 'node:fs';
import * as path from 'node:path';
import { checkName } from '../chunks/names.js';
import { failed, usage } from '../errors.js';
import { loadDomain } from '../libvirt/load-domain.js';
import { Virsh } from '../libvirt/virsh.js';
import { readPending } from '../session/journal.js';
import { selectDisks } from '../snapshot/select.js';
import { OVERLAY_KIND } from '../snapshot/watched-kinds.js';
import type { Point } from './chain-record.js';
import { type ChainSession, type ChainSessionRequest, inChainSession, settleChain } from './chain-session.js';
import { type LiveChain, liveChainFile, readLiveChain } from './live-chain.js';
import { commitLayers } from './merge-layers.js';
import { pullLayers } from './pull-layers.js';
import { type PointRequest, takePoint } from './take-point.js';

/** Deeper chains cost the guest time, and libvirt takes no more than 200. */
const MANY_LAYERS = 30;

export type ConsolidateMethod = 'blockcommit' | 'blockpull';

export interface ChainRequest extends ChainSessionRequest, Pick<PointRequest, 'full' | 'options'> {
  readonly connect: string | undefined;
  /** The copies go to `<to>/<name>`; undefined: nothing is copied. */
  readonly to: string | undefined;
  /** Merge the layers afterwards. */
  readonly consolidate: ConsolidateMethod | undefined;
  /** Disks that are neither put onto a layer and copied, nor merged. */
  readonly exclude: readonly string[];
  /** Several VMs have one list of excluded disks: each need not have all of them. */
  readonly amongOthers?: boolean | undefined;
}

export interface ChainResult {
  readonly name: string;
  readonly directory: string | null;
  /** What was added; null if nothing was to be copied. */
  readonly point: Point | null;
  /** Layers that were merged and removed. */
  readonly merged: readonly string[];
}

async function copy(request: ChainRequest, to: string, session: ChainSession, virsh: Virsh): Promise<Point> {
  const { name, state, reporter, signal, full, options, insisted, commitTimeoutMs } = request;
  const domain = await loadDomain(virsh, name);
  const targets = new Set(domain.disks.map(({ target }) => target));
  const exclude = request.exclude.filter((target) => request.amongOthers !== true || targets.has(target));
  const point = await takePoint({
    virsh,
    domain,
    disks: selectDisks(domain, { exclude, reporter }),
    directory: path.join(to, name),
    full,
    options,
    liveFile: liveChainFile(state, name),
    sessionId: session.id,
    journal: session.journal,
    reporter,
    signal,
  });
  // What held the frozen images would keep them from being merged.
  const [problem] = await settleChain({
    journal: session.journal,
    reporter,
    signal: insisted,
    commitTimeoutMs,
  });
  if (problem !== undefined) throw problem;
  return point;
}

/** A disk that was taken out of the VM may still have layers of ours. Throws a usage error for one that never was in it. */
async function checkExcluded(
  { name, exclude, amongOthers }: ChainRequest,
  live: LiveChain | undefined,
  virsh: Virsh,
): Promise<void> {
  if (exclude.length === 0 || amongOthers === true) return;
  const { disks } = await loadDomain(virsh, name);
  const targets = [...disks, ...(live?.disks ?? [])].map(({ target }) => target);
  const unknown = exclude.filter((target) => !targets.includes(target));
  if (unknown.length === 0) return;
  throw usage(`${name} has no disk ${unknown.join(', ')} to exclude`, {
    hint: `see its disks: virsh domblklist ${name}`,
  });
}

async function consolidate(
  request: ChainRequest,
  method: ConsolidateMethod,
  session: ChainSession,
  virsh: Virsh,
): Promise<string[]> {
  const { name, state, exclude, reporter, signal, commitTimeoutMs } = request;
  const liveFile = liveChainFile(state, name);
  const live = readLiveChain(liveFile);
  await checkExcluded(request, live, virsh);
  const domain = await virsh.find(name);
  if (live === undefined || live.uuid !== domain.uuid) {
    reporter.notice(`${name} has no layers of ours: there is nothing to merge`);
    return [];
  }
  const { journal } = session;
  const merge = { virsh, domain, liveFile, exclude, journal, reporter, signal, commitTimeoutMs };
  return method === 'blockcommit' ? commitLayers(merge) : pullLayers(merge);
}

function warnOfMany({ name, state, reporter }: ChainRequest): void {
  const counts = (readLiveChain(liveChainFile(state, name))?.disks ?? []).map(({ layers }) => layers.length);
  const most = Math.max(0, ...counts);
  if (most > MANY_LAYERS)
    reporter.warn(`${name} runs on ${most} layers: merge them with --consolidate or --consolidate-only`);
}

/** Overlays that --keep-overlay left are merged from below in time, and then a layer of a chain would lie on another image. */
function checkKept({ name, state }: ChainRequest): void {
  const file = state.keptJournal(name);
  if (!fs.existsSync(file) || !readPending(file).some(({ kind }) => kind === OVERLAY_KIND)) return;
  throw failed(`${name} is on an overlay that --keep-overlay left, and a chain cannot begin on that`, {
    hint: `merge it first: chunkmount cleanup --kept --vm=${name}`,
  });
}

/** Adds a point to a VM's chain of copies, and merges the VM's own layers, as asked for. */
export async function runChain(request: ChainRequest): Promise<ChainResult> {
  const { name, to, signal } = request;
  checkName(name);
  const virsh = new Virsh({ connect: request.connect, signal });
  return inChainSession(request, async (session) => {
    checkKept(request);
    const point = to === undefined ? null : await copy(request, to, session, virsh);
    const { consolidate: method } = request;
    let merged: string[] = [];
    try {
      if (method !== undefined) merged = await consolidate(request, method, session, virsh);
    } catch (error) {
      if (point === null) throw error;
      throw failed(
        `point ${point.number} of ${name} is complete, but its layers are not merged: ${(error as Error).message}`,
        {
          hint: 'mend that, then: chunkmount chain --consolidate-only',
          cause: error,
        },
      );
    }
    if (method === undefined) warnOfMany(request);
    return { name, directory: to === undefined ? null : path.join(to, name), point, merged };
  });
}
