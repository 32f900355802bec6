import * as path from 'node:path';
import type { Counters } from '../fuse/transport.js';
import { readIfExists, replaceFile } from '../host/durable.js';
import type { ScanState } from './served-tree.js';

/** What the daemon says of itself, in `<session>/status.json`; a snapshot some second old. */
export interface DaemonStatus {
  /**
   * ended: the tree was unmounted, by whomever; failed: it was, but the index could not be saved; stopped: the daemon was told to end, or
   * could not go on, while somebody might read the tree.
   */
  readonly state: 'serving' | 'stopped' | 'ended' | 'failed';
  readonly at: string;
  readonly scan: ScanState;
  readonly counters: Counters;
  /** How long the scanners took to look at all chunks, once they have. */
  readonly scanSeconds?: number;
  /** What is to be said of the snapshots: how full they are. */
  readonly warnings?: readonly string[];
  /** Snapshots whose content is gone, as sentences: what was read since is worth nothing. */
  readonly lost?: readonly string[];
  /** Why the index could not be saved. */
  readonly error?: string;
}

const NAME = 'status.json';

export function writeStatus(sessionDirectory: string, status: DaemonStatus): void {
  // No words and those of a daemon that serves say the same once the host has crashed: that it died.
  const durable = status.state !== 'serving';
  replaceFile(path.join(sessionDirectory, NAME), `${JSON.stringify(status)}\n`, { durable });
}

/** The daemon's last words; undefined when it never said any. */
export function readStatus(sessionDirectory: string): DaemonStatus | undefined {
  const text = readIfExists(path.join(sessionDirectory, NAME));
  if (text === undefined) return undefined;
  try {
    return JSON.parse(text) as DaemonStatus;
  } catch {
    return undefined;
  }
}
