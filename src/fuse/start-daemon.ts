import * as fs from 'node:fs';
import * as path from 'node:path';
import { ChunkmountError, failed, messageOf } from '../errors.js';
import { spawnDaemon } from '../host/exec.js';
import { mountAt, mountpointsOf } from '../host/mountinfo.js';
import type { Politeness } from '../host/politeness.js';
import { identify, type ProcessIdentity } from '../host/process-identity.js';
import type { DaemonMessage } from './daemon-process.js';
import { mountDevice, openDevice, raiseReadAhead } from './kernel/mount.js';
import type { TransportKind } from './transport.js';

/** Normally it takes 0.4 s. One that has to open large indexes on a busy disk, or on a host without a free processor, may take a while. */
const READY_TIMEOUT_MS = 180_000;

export interface StartDaemonRequest {
  /** A program of ours that calls `runDaemon`, and its arguments. */
  readonly script: string;
  readonly args: readonly string[];
  readonly logFile: string;
  readonly politeness?: Politeness | undefined;
  readonly transport: TransportKind;
  readonly mountpoint: string;
  /** See ServeOptions. */
  readonly source: string;
  readonly allowOther: boolean;
  /** Bytes that readers will mostly want at once. */
  readonly readAhead: number;
  readonly signal?: AbortSignal | undefined;
  /** Called as soon as the process is there. */
  onStarted?(daemon: ProcessIdentity | undefined): void;
}

/**
 * Starts a daemon and mounts what it serves. Returns its warnings once the mount answers. When it throws, process and mount may
 * be there or not: the caller looks and undoes.
 */
export async function startDaemon(request: StartDaemonRequest): Promise<readonly string[]> {
  const { mountpoint, source, allowOther, signal } = request;
  const device = request.transport === 'kernel' ? openDevice() : undefined;
  let message: DaemonMessage;
  try {
    const daemon = await spawnDaemon(request.script, request.args, {
      logFile: request.logFile,
      timeoutMs: READY_TIMEOUT_MS,
      politeness: request.politeness,
      ...(device === undefined ? {} : { descriptors: [device] }),
    });
    request.onStarted?.(identify(daemon.pid));
    if (device !== undefined) await mountDevice(device, { mountpoint, source, allowOther, signal });
    message = (await daemon.message) as DaemonMessage;
  } finally {
    // The connection must end with the daemon, so nobody else may hold it.
    if (device !== undefined) fs.closeSync(device);
  }
  if (message.kind === 'failed') {
    const { error, message: sentence, hint } = message;
    throw new ChunkmountError(error, sentence, { hint });
  }
  raiseReadAhead(mountpoint, request.readAhead);
  await checkAnswers(mountpoint, source);
  return message.warnings;
}

/** statfs is never answered from a cache. */
async function checkAnswers(mountpoint: string, source: string): Promise<void> {
  if (mountAt(mountpoint)?.source !== source) {
    const [elsewhere] = mountpointsOf(source);
    const where = elsewhere === undefined ? '' : `: a symbolic link led it to ${elsewhere}`;
    throw failed(`${mountpoint} is not mounted although mount said so${where}`, {
      hint: `see who else may write in ${path.dirname(mountpoint)}`,
    });
  }
  try {
    await fs.promises.statfs(mountpoint);
  } catch (error) {
    throw failed(`the mount at ${mountpoint} does not answer: ${messageOf(error)}`, { cause: error });
  }
}
