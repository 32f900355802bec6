import * as fs from 'node:fs';
import * as path from 'node:path';
import { failed, messageOf } from '../errors.js';
import { mountDevice, openDevice, raiseReadAhead } from '../fuse/kernel/mount.js';
import { replaceFile } from '../host/durable.js';
import { spawnDaemon } from '../host/exec.js';
import { mountAt } from '../host/mountinfo.js';
import { identify } from '../host/process-identity.js';
import type { Reporter } from '../report/reporter.js';
import type { Journal } from '../session/journal.js';
import {
  CONFIG_NAME,
  DAEMON_SCRIPT,
  type DaemonConfig,
  type DaemonMessage,
  LOG_NAME,
} from './daemon-config.js';
import { SERVE } from './stop-serving.js';

/** A daemon that has to open large indexes on a busy disk may take a while; normally it takes 0.2 s. */
const READY_TIMEOUT_MS = 60_000;

export interface ServeRequest {
  readonly config: DaemonConfig;
  readonly journal: Journal;
  readonly reporter: Reporter;
  readonly signal?: AbortSignal | undefined;
}

/**
 * Starts the daemon and mounts the tree. Returns once the mount answers. Journal kind `serve`: undone by stop-serving.ts, also
 * when this throws half-way.
 */
export async function serve(request: ServeRequest): Promise<void> {
  const { config, journal, reporter } = request;
  const { sessionDirectory, mountpoint, source } = config;
  replaceFile(path.join(sessionDirectory, CONFIG_NAME), JSON.stringify(config));
  const entry = journal.intend(SERVE, { mountpoint, source, sessionDirectory });
  const device = config.transport === 'kernel' ? openDevice() : undefined;
  try {
    const daemon = await spawnDaemon(DAEMON_SCRIPT, [sessionDirectory], {
      logFile: path.join(sessionDirectory, LOG_NAME),
      timeoutMs: READY_TIMEOUT_MS,
      ...(device === undefined ? {} : { descriptors: [device] }),
    });
    journal.done(entry, { daemon: identify(daemon.pid) });
    if (device !== undefined)
      await mountDevice(device, {
        mountpoint,
        source,
        allowOther: config.allowOther,
        signal: request.signal,
      });
    const message = (await daemon.message) as DaemonMessage;
    if (message.kind === 'failed') throw failed(message.message, { hint: message.hint });
    for (const warning of message.warnings) reporter.warn(warning);
  } finally {
    // The connection must end with the daemon, so nobody else may hold it.
    if (device !== undefined) fs.closeSync(device);
  }
  raiseReadAhead(mountpoint, Math.max(...config.disks.map(({ chunkSize }) => chunkSize)));
  await checkAnswers(mountpoint, source);
}

/** statfs is never answered from a cache. */
async function checkAnswers(mountpoint: string, source: string): Promise<void> {
  if (mountAt(mountpoint)?.source !== source)
    throw failed(`${mountpoint} is not mounted although mount said so`);
  try {
    await fs.promises.statfs(mountpoint);
  } catch (error) {
    throw failed(`the mount at ${mountpoint} does not answer: ${messageOf(error)}`, { cause: error });
  }
}
