import { latestPossibleMtime, type SessionTimes } from '../content-index/stable-times.js';
import type { Reporter } from '../report/reporter.js';

/** A session within a second of the last one has chunks from the next second; longer than this is a clock set back. */
const MAX_WAIT_MS = 3_000;

export interface PreciseTime {
  readonly seconds: number;
  readonly nanoseconds: number;
}

/**
 * mtime of the manifest: later than that of every chunk (borg drops the newest timestamp from its files cache) and not later
 * than now. Waits for the clock where a moment makes both true.
 */
export async function manifestTime(times: SessionTimes, reporter: Reporter): Promise<PreciseTime> {
  const latest = latestPossibleMtime(times);
  const missing = latest * 1000 + 1 - Date.now();
  if (missing > MAX_WAIT_MS) {
    reporter.warn(
      `the clock was set back: chunks of earlier backups have times up to ${new Date(latest * 1000).toISOString()}`,
    );
    return { seconds: latest + 1, nanoseconds: 0 };
  }
  if (missing > 0) await new Promise((resolve) => setTimeout(resolve, missing));
  const now = Math.max(Date.now(), latest * 1000 + 1);
  return { seconds: Math.floor(now / 1000), nanoseconds: (now % 1000) * 1_000_000 };
}
