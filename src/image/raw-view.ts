import * as fs from 'node:fs';
import * as path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { type ChunkmountError, failed } from '../errors.js';
import { spawnDetached } from '../host/exec.js';
import { mountAt } from '../host/mountinfo.js';
import type { Politeness } from '../host/politeness.js';
import { identify, isAlive, type ProcessIdentity } from '../host/process-identity.js';
import type { Journal } from '../session/journal.js';
import { chainNode } from './block-node.js';
import type { ImageChain } from './image-layer.js';

/** Journal kind of a raw view; its data is RawViewRecord. */
export const RAW_VIEW = 'raw-view';

const STORAGE_DAEMON = 'qemu-storage-daemon';

const READY_TIMEOUT_MS = 30_000;
const POLL_MS = 10;
/** How much of the end of the daemon's log goes into a message. */
const LOG_TAIL_LENGTH = 500;

/** What the journal says of a raw view: the mountpoint from the beginning, the process once it is known. */
export interface RawViewRecord {
  readonly mountpoint: string;
  readonly identity?: ProcessIdentity | undefined;
}

export interface RawViewRequest {
  /** The image's chain, as InspectedImage has it. */
  readonly layers: ImageChain;
  /** Size of the disk in bytes, as InspectedImage has it. */
  readonly virtualSize: number;
  /** The file to show the disk as; must not exist, its directory must. Absolute, in a directory that only we write. */
  readonly mountpoint: string;
  /** What the storage daemon says is appended here. */
  readonly logFile: string;
  readonly politeness?: Politeness | undefined;
  readonly journal: Journal;
  readonly signal?: AbortSignal | undefined;
}

export interface RawView {
  /** The file whose bytes are the disk's: the request's mountpoint, free of symbolic links. */
  readonly path: string;
  /** The storage daemon, which outlives us. */
  readonly identity: ProcessIdentity;
}

/** The argument that says where the view is mounted; no other process has the same. */
export function exportArgument(mountpoint: string): string {
  return JSON.stringify({
    type: 'fuse',
    id: 'view',
    'node-name': 'disk',
    mountpoint,
    writable: false,
    'allow-other': 'off',
  });
}

function logTail(logFile: string, from: number): string {
  const text = fs.readFileSync(logFile).subarray(from).toString('utf8').trim();
  return text.slice(-LOG_TAIL_LENGTH).replace(/\s*\n\s*/g, '; ');
}

/** Whether the view is mounted and gives its first sector. A file system call, so never made before the mount is there. */
async function isReadable(mountpoint: string, size: number): Promise<boolean> {
  if (mountAt(mountpoint) === undefined) return false;
  const file = await fs.promises.open(mountpoint, 'r');
  try {
    const found = await file.stat();
    if (found.size !== size) return false;
    const wanted = Math.min(size, 512);
    const { bytesRead } = await file.read(Buffer.alloc(512), 0, wanted, 0);
    return bytesRead === wanted;
  } finally {
    await file.close();
  }
}

/**
 * Shows an image of any format as a raw file, decoded by QEMU in a process of its own, which outlives us and which reads every layer
 * in the format that the chain says. Returns once the file can be read; only the user who started it can read it.
 * When it throws, the caller undoes what the journal holds (raw-view-undo.ts).
 */
export async function startRawView(request: RawViewRequest): Promise<RawView> {
  const { journal, logFile, signal } = request;
  signal?.throwIfAborted();
  const directory = fs.realpathSync(path.dirname(request.mountpoint));
  const mountpoint = path.join(directory, path.basename(request.mountpoint));
  if (fs.lstatSync(mountpoint, { throwIfNoEntry: false }) !== undefined) {
    throw failed(`the raw view ${mountpoint} exists already`, {
      hint: 'end the session that made it: chunkmount cleanup',
    });
  }
  const record: RawViewRecord = { mountpoint };
  const entry = journal.intend(RAW_VIEW, { ...record });
  fs.closeSync(fs.openSync(mountpoint, 'wx', 0o600));
  const logStart = fs.statSync(logFile, { throwIfNoEntry: false })?.size ?? 0;
  const node = { ...chainNode(request.layers), 'node-name': 'disk' };
  const pid = await spawnDetached(
    STORAGE_DAEMON,
    ['--blockdev', JSON.stringify(node), '--export', exportArgument(mountpoint)],
    { logFile, politeness: request.politeness },
  );
  const identity = identify(pid);
  if (identity !== undefined) journal.done(entry, { identity });
  const deadline = performance.now() + READY_TIMEOUT_MS;
  while (identity !== undefined && isAlive(identity)) {
    signal?.throwIfAborted();
    if (await isReadable(mountpoint, request.virtualSize)) return { path: mountpoint, identity };
    if (performance.now() > deadline)
      throw notStarted(request, `it was not ready after ${READY_TIMEOUT_MS / 1000} s`);
    await sleep(POLL_MS, undefined, { signal });
  }
  throw notStarted(request, logTail(logFile, logStart) || 'it ended without a word');
}

function notStarted({ layers, logFile }: RawViewRequest, why: string): ChunkmountError {
  const fuse =
    fs.statSync('/dev/fuse', { throwIfNoEntry: false }) === undefined
      ? 'load the kernel module: modprobe fuse'
      : undefined;
  return failed(`${STORAGE_DAEMON} cannot show the image ${layers[0].path}: ${why}`, {
    hint: fuse ?? 'it needs /dev/fuse and, for other users than root, fusermount3 (apt-get install fuse3)',
    details: { path: layers[0].path, logFile },
  });
}
