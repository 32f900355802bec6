import * as fs from 'node:fs';
import * as path from 'node:path';
import { failed, usage } from '../errors.js';
import { fsyncDirectory } from '../host/durable.js';
import { run } from '../host/exec.js';
import { chainNode } from '../image/block-node.js';
import type { ImageLayer } from '../image/image-layer.js';
import { refuseIfUsedByQemu } from '../image/image-lock.js';
import { imageInfo } from '../image/qemu-img.js';
import type { Reporter } from '../report/reporter.js';
import { type ChainRecord, type DiskCopy, type Point, readChainRecord } from './chain-record.js';
import { checkCopies } from './check-copies.js';
import { syncFile } from './file-copy.js';
import { watchGrowth } from './growth.js';

const DAY_MS = 86_400_000;
const LEAST_TIMEOUT_MS = 600_000;
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
    hint: `it has ${range}: give --at=latest, a number or a date (2026-11-20, 2026-11-20T23:00:00Z)`,
  });
}

function find(points: readonly Point[], at: string): Point | undefined {
  if (at === 'latest') return points.at(-1);
  if (/^[0-9]{1,9}$/.test(at)) return points.find(({ number }) => number === Number(at));
  if (!/^[0-9]{4}-[0-9]{2}-[0-9]{2}([T ].*)?$/.test(at)) return undefined;
  const time = Date.parse(at);
  // A day means its end.
  const end = at.length === 10 ? time + DAY_MS - 1 : time;
  return points.findLast((point) => Date.parse(point.time) <= end);
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

async function checkTarget(to: string, force: boolean): Promise<void> {
  const stat = fs.lstatSync(to, { throwIfNoEntry: false });
  if (stat === undefined) return;
  if (!stat.isFile()) throw usage(`${to} is no file`, { hint: 'give the path of an image to be made' });
  await refuseIfUsedByQemu(to);
  if (!force) throw failed(`${to} exists already`, { hint: 'give another --to, or --force to replace it' });
}

/** Makes an image of a disk as it was at a point, after checking the sums of all copies that it takes. */
export async function restorePoint(request: RestorePointRequest, record: ChainRecord): Promise<void> {
  const { directory, copy, to, format, force, reporter, signal } = request;
  await checkTarget(to, force);
  const hint = 'put it back from a copy of that directory, or restore an earlier point';
  const copies = await checkCopies(directory, record, copy.file, { hint, thorough: true, reporter, signal });
  const [top, ...below] = await Promise.all(copies.map((one) => layerOf(directory, one, signal)));
  const source = `json:${JSON.stringify(chainNode([top!, ...below]))}`;
  const bytes = copies.reduce((sum, { size }) => sum + size, 0);
  const part = path.join(path.dirname(to), `.${path.basename(to)}.${process.pid}.part`);
  fs.closeSync(fs.openSync(part, 'wx', 0o600));
  try {
    const done = watchGrowth(part, { label: `restoring ${copy.target}`, bytes, reporter });
    try {
      const timeoutMs = LEAST_TIMEOUT_MS + (bytes / SLOWEST_BYTES_PER_SECOND) * 1000;
      await run('qemu-img', ['convert', '-f', 'qcow2', '-O', format, source, part], { timeoutMs, signal });
    } finally {
      done();
    }
    await syncFile(part);
    await checkTarget(to, force);
    fs.renameSync(part, to);
  } catch (error) {
    fs.rmSync(part, { force: true });
    throw error;
  }
  fsyncDirectory(path.dirname(path.resolve(to)));
}
