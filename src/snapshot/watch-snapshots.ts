import * as fs from 'node:fs';
import * as path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { messageOf } from '../errors.js';
import type { JournalEntry } from '../session/journal.js';
import { readOverlayRecord } from './overlay/record.js';
import { readCloneRecord } from './reflink/clone-record.js';
import { Once, type WatchRequest } from './watch-request.js';
import { LVM_KIND, OVERLAY_KIND, PULL_JOB_KIND, REFLINK_KIND } from './watched-kinds.js';

/** A file system with less than this, where an overlay grows or a clone keeps what is overwritten, will soon stop the guest. */
const LOW_SPACE_BYTES = 256 * 2 ** 20;

const INTERVAL_MS = 5_000;
/** Of a backup job: when its scratch file is full, the guest's writes fail. */
const OFTEN_MS = 250;

interface Grown {
  readonly file: string;
  readonly what: string;
}

const watchSpace =
  (grown: (entry: JournalEntry) => Grown): Watcher =>
  async (entry, { reporter }, once) => {
    const { file, what } = grown(entry);
    const directory = path.dirname(file);
    const { bavail, bsize } = await fs.promises.statfs(directory);
    const mib = Math.floor((bavail * bsize) / 2 ** 20);
    if (bavail * bsize >= LOW_SPACE_BYTES) return;
    once.do(`${directory} ${Math.floor(mib / 64)}`, () =>
      reporter.warn(
        `${directory} has ${mib} MiB left for ${what}: when it is full, the VM stands still until cleanup`,
      ),
    );
  };

type Watcher = (entry: JournalEntry, request: WatchRequest, once: Once) => Promise<void>;

/** A daemon whose VM has no LVM snapshot does without everything that knows LVM. */
const watchLvm: Watcher = async (...args) => (await import('./lvm/watch.js')).watchLvm(...args);

const watchPull: Watcher = async (...args) => (await import('./pull/watch.js')).watchPull(...args);

const WATCHERS: Readonly<Record<string, Watcher>> = {
  [LVM_KIND]: watchLvm,
  [OVERLAY_KIND]: watchSpace((entry) => ({ file: readOverlayRecord(entry).overlay, what: 'overlays' })),
  [REFLINK_KIND]: watchSpace((entry) => ({
    file: readCloneRecord(entry).clone,
    what: 'what the VM overwrites',
  })),
  [PULL_JOB_KIND]: watchPull,
};

/** Looks after the snapshots of a session, every few seconds, until `signal` is aborted. Never throws. */
export async function watchSnapshots(request: WatchRequest): Promise<void> {
  const { entries, reporter, signal } = request;
  const watched = entries.filter(({ kind }) => WATCHERS[kind] !== undefined);
  const once = new Once();
  const often = watched.some(({ kind }) => kind === PULL_JOB_KIND);
  const intervalMs = request.intervalMs ?? (often ? OFTEN_MS : INTERVAL_MS);
  while (watched.length > 0 && !signal.aborted) {
    for (const entry of watched) {
      await WATCHERS[entry.kind]!(entry, request, once).catch((error: unknown) => {
        // At the end of a session what it asked is stopped.
        if (signal.aborted) return;
        once.do('error', () => reporter.warn(`the snapshots could not be looked after: ${messageOf(error)}`));
      });
    }
    await sleep(intervalMs, undefined, { signal }).catch(() => undefined);
  }
}
