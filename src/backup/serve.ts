import * as path from 'node:path';
import { WaitingDaemon } from '../fuse/start-daemon.js';
import type { TransportKind } from '../fuse/transport.js';
import { replaceFile } from '../host/durable.js';
import type { Politeness } from '../host/politeness.js';
import type { Reporter } from '../report/reporter.js';
import type { Journal } from '../session/journal.js';
import { CONFIG_NAME, DAEMON_SCRIPT, type DaemonConfig, LOG_NAME } from './daemon-config.js';
import { SERVE } from './stop-serving.js';

export interface ServeRequest {
  readonly config: DaemonConfig;
  readonly daemon: WaitingDaemon;
  readonly journal: Journal;
  readonly reporter: Reporter;
  readonly signal?: AbortSignal | undefined;
}

/** Starts the daemon of a session, which gets ready while its tree is made. To be dropped when all is done: then it serves, or ends. */
export function prepareToServe(
  sessionDirectory: string,
  { transport, politeness }: { transport: TransportKind; politeness: Politeness },
): Promise<WaitingDaemon> {
  return WaitingDaemon.start({
    script: DAEMON_SCRIPT,
    args: [sessionDirectory],
    logFile: path.join(sessionDirectory, LOG_NAME),
    politeness,
    transport,
  });
}

/**
 * Has the daemon begin, and mounts the tree. Returns once the mount answers. Journal kind `serve`: undone by stop-serving.ts, also
 * when this throws half-way.
 */
export async function serve(request: ServeRequest): Promise<void> {
  const { config, daemon, journal, reporter, signal } = request;
  const { sessionDirectory, mountpoint, source, allowOther } = config;
  // No daemon outlives the host.
  replaceFile(path.join(sessionDirectory, CONFIG_NAME), JSON.stringify(config), { durable: false });
  const entry = journal.intend(SERVE, { mountpoint, source, sessionDirectory });
  const warnings = await daemon.mount({
    mountpoint,
    source,
    allowOther,
    readAhead: Math.max(...config.disks.map(({ chunkSize }) => chunkSize)),
    signal,
    onBegin: (identity) => journal.done(entry, { daemon: identity }),
  });
  for (const warning of warnings) reporter.warn(warning);
}
