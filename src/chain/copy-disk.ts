import * as fs from 'node:fs';
import * as path from 'node:path';
import { failed } from '../errors.js';
import { run } from '../host/exec.js';
import { timeFor } from '../host/time-for.js';
import { chainNode } from '../image/block-node.js';
import { readChain } from '../image/chain.js';
import type { ImageReference } from '../image/image-reference.js';
import { imageInfo } from '../image/qemu-img.js';
import { watchGrowth } from '../image/watch-growth.js';
import type { Reporter } from '../report/reporter.js';
import type { Journal, JournalEntry } from '../session/journal.js';
import type { UndoHandler } from '../session/undo.js';
import { type DiskCopy, numberText } from './chain-record.js';
import { copyFile, sumOf, syncFile } from './file-copy.js';

export const COPY_KIND = 'chain-copy';

/** qemu-img's exit code for an image that has leaked clusters and is else in order: see qemu-img(1). */
const LEAKS = 3;
/** Even a slow disk gets this far in a second: the bound for a copy that hangs. */
const SLOWEST_BYTES_PER_SECOND = 1024 * 1024;

/**
 * How the copy of a frozen image is made. full: all of the disk, in a copy that lies on nothing. layer: the frozen layer is one of
 * ours, and holds all that was written since the last copy. compare: what was written since then was merged, and is found by comparing
 * the whole disk with the last copy.
 */
export type CopyMethod =
  | { readonly kind: 'full' }
  | { readonly kind: 'layer'; readonly backing: string }
  | { readonly kind: 'compare'; readonly backing: string };

export interface CopyRequest {
  readonly target: string;
  readonly image: ImageReference;
  readonly method: CopyMethod;
  /** Where the copies are. */
  readonly directory: string;
  readonly number: number;
  readonly sessionId: string;
  readonly journal: Journal;
  readonly reporter: Reporter;
  readonly signal?: AbortSignal | undefined;
}

/** A copy that is complete and on disk, under a name of its own. */
export interface MadeCopy {
  readonly part: string;
  readonly copy: DiskCopy;
}

function timeoutFor(bytes: number): number {
  return timeFor(bytes, SLOWEST_BYTES_PER_SECOND);
}

/** The name of a file that is being made: unique, so that whoever finds it in the journal knows that it is ours. */
export function partName(file: string, sessionId: string): string {
  return `.${file}.${sessionId}.part`;
}

/** Makes the file, empty and for us alone, after recording it. */
export function beginPart(journal: Journal, file: string): JournalEntry {
  const entry = journal.intend(COPY_KIND, { file });
  fs.closeSync(fs.openSync(file, 'wx', 0o600));
  return entry;
}

async function copyFull(part: string, request: CopyRequest): Promise<void> {
  const { image, reporter, signal, target } = request;
  const layers = await readChain(image, { reporter, signal });
  const bytes = layers.reduce((sum, { path: file }) => sum + fs.statSync(file).blocks * 512, 0);
  const source = `json:${JSON.stringify(chainNode(layers))}`;
  const done = watchGrowth(part, { label: `copying ${target}`, bytes, reporter });
  try {
    const args = ['convert', '-f', image.format, '-O', 'qcow2', source, part];
    await run('qemu-img', args, { timeoutMs: timeoutFor(bytes), signal });
  } finally {
    done();
  }
}

async function copyLayer(part: string, backing: string, request: CopyRequest): Promise<void> {
  const { image, reporter, signal, target } = request;
  await copyFile(image.path, part, { label: `copying ${target}`, reporter, signal });
  await run('qemu-img', ['rebase', '-u', '-f', 'qcow2', '-F', 'qcow2', '-b', backing, part], { signal });
}

async function copyDifference(part: string, backing: string, request: CopyRequest): Promise<void> {
  const { image, reporter, signal, target } = request;
  // Its headers are followed by qemu-img below; here those that are not to be trusted are refused.
  const layers = await readChain(image, { reporter, signal });
  const bytes = layers.reduce((sum, { path: file }) => sum + fs.statSync(file).blocks * 512, 0);
  const create = ['create', '-q', '-f', 'qcow2', '-F', image.format, '-b', image.path, part];
  await run('qemu-img', create, { signal });
  reporter.notice(
    `disk ${target}: the whole disk is compared with the last copy, because its layers were merged`,
  );
  // What differs between both is written into the part, which then shows the same disk on the other.
  const rebase = ['rebase', '-f', 'qcow2', '-F', 'qcow2', '-b', backing, part];
  await run('qemu-img', rebase, { timeoutMs: timeoutFor(2 * bytes), signal });
}

/** Throws unless QEMU finds the copy in order, and it lies where it should. Returns the size of the disk in bytes. */
async function check(part: string, backing: string | null, request: CopyRequest): Promise<number> {
  const { signal, target } = request;
  const timeoutMs = timeoutFor(fs.statSync(part).size);
  await run('qemu-img', ['check', '-q', '-f', 'qcow2', part], { accept: [LEAKS], timeoutMs, signal });
  const image = { path: part, format: 'qcow2', device: false, fileSize: fs.statSync(part).size };
  const info = await imageInfo(image, signal);
  const lies = info.backing?.name ?? null;
  if (
    lies !== backing ||
    (backing !== null && info.backing?.format !== 'qcow2') ||
    info.dataFile !== undefined
  ) {
    throw failed(`the copy of disk ${target} lies on ${lies} instead of ${backing}`, {
      hint: 'this should not happen: report it',
    });
  }
  return info.virtualSize;
}

/** Copies a frozen disk into the chain's directory, durably, under a name that is not its own yet. */
export async function copyDisk(request: CopyRequest): Promise<MadeCopy> {
  const { target, directory, number, sessionId, method, journal, reporter, signal } = request;
  const file = `${target}.${numberText(number)}.qcow2`;
  const part = path.join(directory, partName(file, sessionId));
  const entry = beginPart(journal, part);
  if (method.kind === 'full') await copyFull(part, request);
  else if (method.kind === 'layer') await copyLayer(part, method.backing, request);
  else await copyDifference(part, method.backing, request);
  const backing = method.kind === 'full' ? null : method.backing;
  const virtualSize = await check(part, backing, request);
  await syncFile(part);
  const sha256 = await sumOf(part, { label: `summing up ${target}`, reporter, signal });
  const { size, mtimeMs } = fs.statSync(part);
  journal.done(entry);
  return { part, copy: { target, file, backing, size, sha256, mtime: mtimeMs, virtualSize } };
}

/** Removes what was not finished. */
const undoCopy: UndoHandler = async (entry) => {
  fs.rmSync(String(entry.data.file), { force: true });
};

export const copyUndo = { [COPY_KIND]: undoCopy };
