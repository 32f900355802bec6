import * as path from 'node:path';
import { startDaemon } from '../fuse/start-daemon.js';
import { replaceFile } from '../host/durable.js';
import type { Politeness } from '../host/politeness.js';
import type { Reporter } from '../report/reporter.js';
import type { Journal } from '../session/journal.js';
import { CONFIG_NAME, DAEMON_SCRIPT, type DaemonConfig, LOG_NAME } from './daemon-config.js';
import { SERVE } from './stop-serving.js';

export interface ServeRequest {
  readonly config: DaemonConfig;
  readonly politeness: Politeness;
  readonly journal: Journal;
  readonly reporter: Reporter;
  readonly signal?: AbortSignal | undefined;
}

/**
 * Starts the daemon and mounts the tree. Returns once the mount answers. Journal kind `serve`: undone by stop-serving.ts, also
 * when this throws half-way.
 */
export async function serve(request: ServeRequest): Promise<void> {
  const { config, politeness, journal, reporter, signal } = request;
  const { sessionDirectory, mountpoint, source, transport, allowOther } = config;
  replaceFile(path.join(sessionDirectory, CONFIG_NAME), JSON.stringify(config));
  const entry = journal.intend(SERVE, { mountpoint, source, sessionDirectory });
  const warnings = await startDaemon({
    script: DAEMON_SCRIPT,
    args: [sessionDirectory],
    politeness,
    logFile: path.join(sessionDirectory, LOG_NAME),
    transport,
    mountpoint,
    source,
    allowOther,
    readAhead: Math.max(...config.disks.map(({ chunkSize }) => chunkSize)),
    signal,
    onStarted: (daemon) => journal.done(entry, { daemon }),
  });
  for (const warning of warnings) reporter.warn(warning);
}
