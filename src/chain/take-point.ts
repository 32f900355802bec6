import * as fs from 'node:fs';
import * as path from 'node:path';
import { failed } from '../errors.js';
import { makeDirectory } from '../host/durable.js';
import type { Journal } from '../session/journal.js';
import { checkSnapshots } from '../snapshot/inspect-snapshots.js';
import { overlayProvider } from '../snapshot/overlay/provider.js';
import { readOverlayRecord } from '../snapshot/overlay/record.js';
import type { SnapshotOptions } from '../snapshot/provider.js';
import { OVERLAY_KIND } from '../snapshot/watched-kinds.js';
import { acceptPoint } from './accept-point.js';
import { numberText, type Point, readChainRecord } from './chain-record.js';
import { beginPart, copyDisk, type MadeCopy, partName } from './copy-disk.js';
import { syncFile } from './file-copy.js';
import { type Layer, type LiveChain, type LiveDisk, readLiveChain } from './live-chain.js';
import { type DiskPlan, type PlanRequest, planPoint } from './plan-point.js';

export interface PointRequest extends Omit<PlanRequest, 'live' | 'record'> {
  readonly liveFile: string;
  readonly sessionId: string;
  readonly options: Pick<SnapshotOptions, 'quiesce' | 'overlayDirectory'>;
  readonly journal: Journal;
}

/** The overlays that this session put the VM onto, by target. */
function madeLayers(journal: Journal): Map<string, Layer> {
  const layers = new Map<string, Layer>();
  for (const entry of journal.pending().filter(({ kind }) => kind === OVERLAY_KIND)) {
    const { target, overlay, file, made } = readOverlayRecord(entry);
    if (made === true && file !== undefined) layers.set(target, { path: overlay, identity: file });
  }
  return layers;
}

/** What is ours once the point is valid. */
function nextLive(
  { domain, directory }: PointRequest,
  before: LiveChain | undefined,
  plans: readonly DiskPlan[],
  made: ReadonlyMap<string, Layer>,
  copies: readonly MadeCopy[],
): LiveChain {
  const moved = before !== undefined && before.directory !== directory;
  const others = (before?.disks ?? [])
    .filter(({ target }) => !plans.some(({ disk }) => disk.target === target))
    .map((disk): LiveDisk => (moved ? { ...disk, copy: null } : disk));
  const disks = plans.map(({ live }, index): LiveDisk => {
    const layers = [...live.layers, made.get(live.target)!];
    return { ...live, layers, copy: copies[index]!.copy.file };
  });
  return {
    format: 'chunkmount-live-chain',
    version: 1,
    uuid: domain.uuid,
    directory,
    disks: [...others, ...disks],
  };
}

function makeChainDirectory(directory: string): void {
  try {
    makeDirectory(directory);
    fs.accessSync(directory, fs.constants.W_OK);
  } catch (error) {
    throw failed(`the chain's directory ${directory} cannot be written`, {
      hint: 'is its file system mounted, and writable? --to=DIR names another place',
      cause: error,
    });
  }
}

/** A name that somebody else took would be overwritten. */
function checkNames(directory: string, number: number, plans: readonly DiskPlan[]): void {
  const files = [
    `${numberText(number)}.xml`,
    ...plans.map(({ disk }) => `${disk.target}.${numberText(number)}.qcow2`),
  ];
  const taken = files.find((file) => fs.existsSync(path.join(directory, file)));
  if (taken === undefined) return;
  throw failed(`${path.join(directory, taken)} is there already, and chain.json does not know it`, {
    hint: 'move it away, or put back the chain.json that belongs to it',
  });
}

async function writeDefinition(request: PointRequest, number: number, xml: string) {
  const file = `${numberText(number)}.xml`;
  const part = path.join(request.directory, partName(file, request.sessionId));
  const entry = beginPart(request.journal, part);
  fs.writeFileSync(part, xml);
  await syncFile(part);
  request.journal.done(entry);
  return { part: path.basename(part), file };
}

/**
 * Adds a point to a chain: freezes the disks, copies what changed since the last point, and leaves the VM on the new layers. When it
 * throws, the journal says how the VM gets its disks back as they were.
 */
export async function takePoint(request: PointRequest): Promise<Point> {
  const { virsh, domain, directory, sessionId, journal, reporter, signal } = request;
  const record = readChainRecord(directory);
  const before = readLiveChain(request.liveFile);
  const plans = await planPoint({ ...request, live: before, record });
  const number = (record?.points.at(-1)?.number ?? 0) + 1;
  checkNames(directory, number, plans);
  makeChainDirectory(directory);
  const xml = await virsh.dumpXml(domain.uuid, { inactive: true });
  const disks = plans.map(({ disk }) => disk);
  const freeze = { virsh, domain, disks, sessionId, options: request.options, journal, reporter, signal };
  const snapshot = await overlayProvider.freeze(freeze);
  const copies: MadeCopy[] = [];
  for (const [index, { method }] of plans.entries()) {
    const { target, image } = snapshot.disks[index]!;
    const copy = { target, image, method, directory, number, sessionId, journal, reporter, signal };
    copies.push(await copyDisk(copy));
  }
  const definition = await writeDefinition(request, number, xml);
  await checkSnapshots(journal);
  signal?.throwIfAborted();
  const made = madeLayers(journal);
  const point: Point = {
    number,
    id: sessionId,
    time: snapshot.time.toISOString(),
    consistency: snapshot.consistency,
    definition: definition.file,
    disks: copies.map(({ copy }) => copy),
  };
  const parts = copies.map(({ part, copy }) => ({ part: path.basename(part), file: copy.file }));
  const live = nextLive(request, before, plans, made, copies);
  const overlays = [...made.values()].map((layer) => layer.path);
  const { name } = domain;
  acceptPoint(
    { name, directory, point, parts: [...parts, definition], liveFile: request.liveFile, live, overlays },
    journal,
  );
  return point;
}
