import { randomBytes } from 'node:crypto';
import * as fs from 'node:fs';
import * as path from 'node:path';
import * as v from 'valibot';
import { failed, messageOf } from '../errors.js';
import { CommandError } from '../host/command-error.js';
import { run } from '../host/exec.js';
import { type ProcessIdentity, signalProcess, waitForEnd } from '../host/process-identity.js';
import { findProcesses } from '../host/process-list.js';
import type { ImageChain } from '../image/image-layer.js';
import { isWrittenByQemu } from '../image/image-lock.js';
import type { Journal } from '../session/journal.js';
import type { UndoHandler } from '../session/undo.js';
import { imageMarks, markImages, writtenImages } from './image-marks.js';

export const HOLD_KIND = 'hold';

const START_TIMEOUT_MS = 10_000;
const END_TIMEOUT_MS = 10_000;

export interface HoldRequest {
  /** Image files or block devices, absolute. */
  readonly images: readonly string[];
  /** The holder's pid file is made in the journal's directory. */
  readonly journal: Journal;
  readonly signal?: AbortSignal | undefined;
}

const record = v.object({
  pidFile: v.string(),
  ...imageMarks,
  holder: v.optional(v.object({ bootId: v.string() })),
});

function isDevice(image: string): boolean {
  try {
    return fs.statSync(image).isBlockDevice();
  } catch (error) {
    throw failed(`${image} cannot be held: ${messageOf(error)}`, {
      hint: 'does the image exist?',
      cause: error,
    });
  }
}

/**
 * Two nodes an image: the file, and a filter above it that forbids everybody else to write. The image's format plays no
 * part, so nothing that a guest wrote is looked at.
 */
function blockdevs(images: readonly string[]): string[] {
  return images.flatMap((filename, index) => {
    const device = isDevice(filename);
    const file = {
      driver: device ? 'host_device' : 'file',
      'node-name': `file${index}`,
      filename,
      'read-only': true,
    };
    const hold = {
      driver: 'blkdebug',
      'node-name': `hold${index}`,
      image: `file${index}`,
      'read-only': true,
      'unshare-child-perms': ['write'],
    };
    return [file, hold].flatMap((options) => ['--blockdev', JSON.stringify(options)]);
  });
}

function holders(pidFile: string): ProcessIdentity[] {
  return findProcesses((argv) => argv[argv.indexOf('--pidfile') + 1] === pidFile);
}

async function firstWritten(images: readonly string[]): Promise<string | undefined> {
  for (const image of images) if (await isWrittenByQemu(image)) return image;
  return undefined;
}

async function explain(error: unknown, images: readonly string[]): Promise<unknown> {
  if (!(error instanceof CommandError) || error.exitCode === undefined) return error;
  const written = await firstWritten(images);
  if (written === undefined) {
    return failed(`${images.join(', ')} cannot be held: ${messageOf(error)}`, {
      hint: 'can the image be read, and is no other program (another VM, a backup) writing it?',
      cause: error,
    });
  }
  return failed(`${written} is being written by another program`, {
    hint: 'a VM uses it: back that VM up by name, --vm=…, or shut it down',
    details: { image: written },
    cause: error,
  });
}

/**
 * Keeps the images from being written, by QEMU's own locks, until the journal entry is undone: a VM on one of them cannot be
 * started, and nobody can commit into it. A process of its own holds them, so that they stay held after we have ended.
 * Throws when somebody writes one of them now.
 */
export async function holdImages(request: HoldRequest): Promise<void> {
  const images = [...new Set(request.images)];
  if (images.length === 0) return;
  const devices = blockdevs(images);
  const { journal } = request;
  const pidFile = path.join(
    path.dirname(path.resolve(journal.file)),
    `hold-${randomBytes(4).toString('hex')}.pid`,
  );
  const entry = journal.intend(HOLD_KIND, { pidFile, images });
  try {
    // It reports success only once everything is open and locked, and then goes on in the background.
    await run('qemu-storage-daemon', ['--daemonize', '--pidfile', pidFile, ...devices], {
      timeoutMs: START_TIMEOUT_MS,
      signal: request.signal,
    });
  } catch (error) {
    throw await explain(error, images);
  }
  const [holder] = holders(pidFile);
  if (holder === undefined) throw failed(`the process that was to hold ${images.join(', ')} ended at once`);
  journal.done(entry, { holder, ...markImages(images) });
}

/** The images that are held for a session. */
export function heldImages(journal: Journal): ReadonlySet<string> {
  const entries = journal.pending().filter(({ kind, done }) => kind === HOLD_KIND && done);
  return new Set(entries.flatMap(({ data }) => v.parse(record, data).images));
}

/** Holds what an image turns out to lie on, its backing files and data files, unless the journal says that it is held already. */
export async function holdLayers(layers: ImageChain, request: Omit<HoldRequest, 'images'>): Promise<void> {
  const held = heldImages(request.journal);
  const files = layers.flatMap(({ path: file, dataFile }) => [
    file,
    ...(dataFile === undefined ? [] : [dataFile.path]),
  ]);
  await holdImages({ ...request, images: files.filter((file) => !held.has(file)) });
}

/** The images of a hold entry that somebody wrote all the same, as far as that can be told. */
export function writtenMeanwhile(data: unknown): string[] {
  const { holder, ...marked } = v.parse(record, data);
  return writtenImages(marked, holder?.bootId);
}

const undoHold: UndoHandler = async (entry) => {
  const { pidFile, images } = v.parse(record, entry.data);
  // The pid file's path is an argument of the holder and of nothing else, also while it is still starting.
  for (const holder of holders(pidFile)) {
    signalProcess(holder, 'SIGTERM');
    if (await waitForEnd(holder, END_TIMEOUT_MS)) continue;
    signalProcess(holder, 'SIGKILL');
    if (!(await waitForEnd(holder, END_TIMEOUT_MS))) {
      throw failed(`process ${holder.pid}, which holds ${images.join(', ')}, does not end`);
    }
  }
  fs.rmSync(pidFile, { force: true });
};

export const holdUndo = { [HOLD_KIND]: undoHold };
