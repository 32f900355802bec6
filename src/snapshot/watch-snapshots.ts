import * as fs from 'node:fs';
import * as path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { messageOf } from '../errors.js';
import type { Reporter } from '../report/reporter.js';
import type { JournalEntry } from '../session/journal.js';
import { extend, freeInGroup, type LogicalVolume, volumeByName } from './logical-volume.js';
import { findLvmSnapshot, LVM_KIND, readLvmRecord } from './lvm-undo.js';
import { OVERLAY_KIND, readOverlayRecord } from './overlay-record.js';

/** From here on a thick snapshot or a pool is nearly full: as in LVM's own snapshot_autoextend_threshold example. */
const NEARLY_FULL_PERCENT = 80;
/** LVM's own snapshot_autoextend_percent. */
const EXTEND_PERCENT = 20;
/** An overlay's file system with less than this will soon stop the guest. */
const LOW_SPACE_BYTES = 256 * 2 ** 20;

const INTERVAL_MS = 5_000;

export interface WatchRequest {
  /** The session's journal entries, once everything is frozen. */
  readonly entries: readonly JournalEntry[];
  readonly reporter: Reporter;
  /** Enlarge a thick LVM snapshot that is nearly full, while its group has space (`--snap-autoextend`). */
  readonly autoExtend: boolean;
  /** A snapshot's content is gone: what is read from now on is worth nothing. Called once for each. */
  readonly onLost: (message: string) => void;
  readonly intervalMs?: number | undefined;
  readonly signal: AbortSignal;
}

/** What was said already, so that it is said once. */
class Once {
  readonly #said = new Set<string>();

  do(key: string, action: () => void): void {
    if (this.#said.has(key)) return;
    this.#said.add(key);
    action();
  }
}

async function enlarge(snapshot: LogicalVolume, { reporter, signal }: WatchRequest): Promise<boolean> {
  const wanted = Math.ceil((snapshot.size * EXTEND_PERCENT) / 100);
  const bytes = Math.min(wanted, await freeInGroup(snapshot.group, signal));
  if (bytes <= 0) return false;
  await extend(snapshot, bytes, signal);
  reporter.notice(`the LVM snapshot ${snapshot.group}/${snapshot.name} was nearly full and is larger now`);
  return true;
}

async function watchThick(snapshot: LogicalVolume, request: WatchRequest, once: Once): Promise<void> {
  const name = `${snapshot.group}/${snapshot.name}`;
  if (snapshot.invalid) {
    once.do(`${name} invalid`, () => request.onLost(`the LVM snapshot ${name} ran full`));
    return;
  }
  const used = snapshot.usedPercent ?? 0;
  if (used < NEARLY_FULL_PERCENT) return;
  if (request.autoExtend && (await enlarge(snapshot, request))) return;
  const step = Math.floor(used / 5) * 5;
  once.do(`${name} ${step}`, () => request.reporter.warn(`the LVM snapshot ${name} is ${used} % full`));
}

async function watchPool(
  snapshot: LogicalVolume,
  { reporter, signal }: WatchRequest,
  once: Once,
): Promise<void> {
  const pool = await volumeByName(snapshot.group, snapshot.pool!, signal);
  const used = Math.max(pool?.usedPercent ?? 0, pool?.metadataPercent ?? 0);
  if (used < NEARLY_FULL_PERCENT) return;
  const step = Math.floor(used / 5) * 5;
  once.do(`${snapshot.pool} ${step}`, () =>
    reporter.warn(
      `the thin pool ${snapshot.group}/${snapshot.pool} is ${used} % full; when it is full, its guests stand still`,
    ),
  );
}

async function watchLvm(entry: JournalEntry, request: WatchRequest, once: Once): Promise<void> {
  const record = readLvmRecord(entry);
  const snapshot = await findLvmSnapshot(record);
  if (snapshot === undefined) {
    once.do(`${record.name} gone`, () =>
      request.onLost(`the LVM snapshot ${record.group}/${record.name} was removed`),
    );
    return;
  }
  await (record.thin ? watchPool : watchThick)(snapshot, request, once);
}

async function watchOverlay(entry: JournalEntry, { reporter }: WatchRequest, once: Once): Promise<void> {
  const directory = path.dirname(readOverlayRecord(entry).overlay);
  const { bavail, bsize } = await fs.promises.statfs(directory);
  const mib = Math.floor((bavail * bsize) / 2 ** 20);
  if (bavail * bsize >= LOW_SPACE_BYTES) return;
  once.do(`${directory} ${Math.floor(mib / 64)}`, () =>
    reporter.warn(
      `${directory} has ${mib} MiB left for overlays: when it is full, the VM stands still until cleanup`,
    ),
  );
}

const WATCHERS: Readonly<
  Record<string, (entry: JournalEntry, request: WatchRequest, once: Once) => Promise<void>>
> = {
  [LVM_KIND]: watchLvm,
  [OVERLAY_KIND]: watchOverlay,
};

/** Looks after the snapshots of a session, every few seconds, until `signal` is aborted. Never throws. */
export async function watchSnapshots(request: WatchRequest): Promise<void> {
  const { entries, reporter, signal } = request;
  const watched = entries.filter(({ kind }) => WATCHERS[kind] !== undefined);
  const once = new Once();
  while (watched.length > 0 && !signal.aborted) {
    for (const entry of watched) {
      await WATCHERS[entry.kind]!(entry, request, once).catch((error: unknown) =>
        reporter.debug(`the snapshots could not be looked after: ${messageOf(error)}`),
      );
    }
    await sleep(request.intervalMs ?? INTERVAL_MS, undefined, { signal }).catch(() => undefined);
  }
}
