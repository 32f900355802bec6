import * as fs from 'node:fs';
import * as path from 'node:path';
import { failed, systemCode, usage } from '../errors.js';
import { fsyncDirectory, inheritAccess } from '../host/durable.js';
import { run } from '../host/exec.js';
import { identify } from '../host/process-identity.js';
import { timeFor } from '../host/time-for.js';
import { chainNode } from '../image/block-node.js';
import type { ImageLayer } from '../image/image-layer.js';
import { refuseIfUsedByQemu } from '../image/image-lock.js';
import { imageInfo } from '../image/qemu-img.js';
import { watchGrowth } from '../image/watch-growth.js';
import type { Reporter } from '../report/reporter.js';
import { type ChainRecord, type DiskCopy, type Point, readChainRecord } from './chain-record.js';
import { checkCopies } from './check-copies.js';
import { syncFile } from './file-copy.js';

const DAY_MS = 86_400_000;
const SLOWEST_BYTES_PER_SECOND = 1024 * 1024;

export interface RestorePointRequest {
  /** The chain's directory. */
  readonly directory: string;
  readonly copy: DiskCopy;
  /** The image to make. */
  readonly to: string;
  readonly format: 'raw' | 'qcow2';
  /** Replace a file that is there. */
  readonly force: boolean;
  readonly reporter: Reporter;
  readonly signal?: AbortSignal | undefined;
}

/** The record of a chain that is to be read. Throws if there is none. */
export function openChain(directory: string): ChainRecord {
  const record = readChainRecord(directory);
  if (record !== undefined && record.points.length > 0) return record;
  throw failed(`${directory} holds no chain`, {
    hint: 'give the directory with chain.json: DIR/VM, where --to=DIR was given',
  });
}

/** The point that `at` names: `latest`, a number, or a date, for the last one that is not later. Throws a usage error if there is none. */
export function choosePoint({ points }: ChainRecord, at: string): Point {
  const range = `points 1 to ${points.at(-1)?.number}, from ${points[0]?.time} to ${points.at(-1)?.time}`;
  const found = find(points, at);
  if (found !== undefined) return found;
  throw usage(`there is no point ${JSON.stringify(at)} in the chain`, {
    hint: `it has ${range}: give --at=latest, a number or a date (2026-11-20, 2026-11-20T23:00:00, in UTC)`,
  });
}

function find(points: readonly Point[], at: string): Point | undefined {
  if (at === 'latest') return points.at(-1);
  if (/^[0-9]{1,9}$/.test(at)) return points.find(({ number }) => number === Number(at));
  const end = endOf(at);
  return points.findLast((point) => Date.parse(point.time) <= end);
}

/** The moment that a date names, in milliseconds since 1970; NaN if it is none. A day means its end; without a zone it is UTC. */
function endOf(date: string): number {
  const match =
    /^([0-9-]{10})(?:[T ]([0-9]{2}:[0-9]{2}(?::[0-9]{2})?(?:\.[0-9]{1,9})?)(Z|[+-][0-9]{2}:[0-9]{2})?)?$/.exec(
      date,
    );
  if (match === null) return Number.NaN;
  const [, day, time, zone = 'Z'] = match;
  return time === undefined ? Date.parse(`${day}T00:00Z`) + DAY_MS - 1 : Date.parse(`${day}T${time}${zone}`);
}

/** A copy as QEMU is to open it. Its header is not trusted: it must say what the record says. */
async function layerOf(
  directory: string,
  copy: DiskCopy,
  signal: AbortSignal | undefined,
): Promise<ImageLayer> {
  const file = path.join(directory, copy.file);
  const layer = { path: file, format: 'qcow2', device: false, fileSize: copy.size };
  const info = await imageInfo(layer, signal);
  const below = info.backing?.name ?? null;
  if (
    below === copy.backing &&
    info.dataFile === undefined &&
    !info.encrypted &&
    info.virtualSize === copy.virtualSize
  ) {
    return layer;
  }
  throw failed(
    `${file} does not lie on ${copy.backing ?? 'nothing'}, as chain.json says, or is another disk`,
    {
      hint: 'put it back from a copy of that directory, or restore another point',
    },
  );
}

function checkDirectory(directory: string): void {
  const hint = 'give --to a place in a directory that is there and can be written to';
  if (fs.statSync(directory, { throwIfNoEntry: false })?.isDirectory() !== true)
    throw usage(`${directory} is no directory`, { hint });
  try {
    fs.accessSync(directory, fs.constants.W_OK | fs.constants.X_OK);
  } catch (error) {
    throw failed(`${directory} cannot be written to: ${systemCode(error) ?? error}`, { hint, cause: error });
  }
}

/** Throws if no image can be made at `to`. Returns what is there to be replaced. Changes nothing. */
export async function checkPlace(to: string, force: boolean): Promise<fs.Stats | undefined> {
  checkDirectory(path.dirname(to));
  const stat = fs.lstatSync(to, { throwIfNoEntry: false });
  if (stat === undefined) return undefined;
  if (!stat.isFile()) throw usage(`${to} is no file`, { hint: 'give the path of an image to be made' });
  await refuseIfUsedByQemu(to);
  if (!force) throw failed(`${to} exists already`, { hint: 'give another --to, or --force to replace it' });
  return stat;
}

/** The image while it is made: named after this process. */
function partName(name: string, pid: number | string): string {
  return `.${name}.${pid}.part`;
}

/** Removes what killed processes left of the image at `to`. One with the number of a process that runs is left alone. */
function removeUnfinished(to: string): void {
  const [directory, name] = [path.dirname(to), path.basename(to)];
  for (const found of fs.readdirSync(directory)) {
    const pid = /\.([1-9][0-9]{0,9})\.part$/.exec(found)?.[1];
    if (pid === undefined || found !== partName(name, pid) || identify(Number(pid)) !== undefined) continue;
    fs.rmSync(path.join(directory, found), { force: true });
  }
}

/** Makes an image of a disk as it was at a point, after checking its place and the sums of all copies that it takes. */
export async function restorePoint(request: RestorePointRequest, record: ChainRecord): Promise<void> {
  const { directory, copy, to, format, force, reporter, signal } = request;
  await checkPlace(to, force);
  removeUnfinished(to);
  const hint = 'put it back from a copy of that directory, or restore an earlier point';
  const copies = await checkCopies(directory, record, copy.file, { hint, thorough: true, reporter, signal });
  const [top, ...below] = await Promise.all(copies.map((one) => layerOf(directory, one, signal)));
  const source = `json:${JSON.stringify(chainNode([top!, ...below]))}`;
  const bytes = copies.reduce((sum, { size }) => sum + size, 0);
  const part = path.join(path.dirname(to), partName(path.basename(to), process.pid));
  fs.closeSync(fs.openSync(part, 'wx', 0o600));
  try {
    const done = watchGrowth(part, { label: `restoring ${copy.target}`, bytes, reporter });
    try {
      const timeoutMs = timeFor(bytes, SLOWEST_BYTES_PER_SECOND);
      await run('qemu-img', ['convert', '-f', 'qcow2', '-O', format, source, part], { timeoutMs, signal });
    } finally {
      done();
    }
    await syncFile(part);
    const replaced = await checkPlace(to, force);
    if (replaced !== undefined) inheritAccess(part, replaced);
    fs.renameSync(part, to);
  } catch (error) {
    fs.rmSync(part, { force: true });
    throw error;
  }
  fsyncDirectory(path.dirname(path.resolve(to)));
}
