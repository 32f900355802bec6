import * as fs from 'node:fs';
import * as v from 'valibot';
import { failed } from '../../errors.js';
import { CommandError } from '../../host/command-error.js';
import { deviceNumber } from '../../host/device-number.js';
import { run } from '../../host/exec.js';
import { usersOf } from '../../host/path-users.js';
import type { Journal, JournalEntry } from '../../session/journal.js';
import type { UndoHandler } from '../../session/undo.js';
import { volumeByUuid } from './logical-volume.js';
import { type ActivePool, activePool, poolStatus, releaseMetadata, reserveMetadata } from './pool.js';

/** Journal kind of the metadata snapshot of a thin pool. A pool has one at most, and it stays over a reboot. */
export const POOL_METADATA_KIND = 'pool-metadata';

const LOCK_CONFLICT_EXIT_CODE = 75;

/** What flock(1) may need beyond the time that it waits. */
const LOCK_GRACE_SECONDS = 60;

/** How long a cleanup waits for those who use the metadata of a pool. Run again it goes on from there. */
const UNDO_WAIT_SECONDS = 120;

const Record = v.object({
  pool: v.string(),
  /** Block of the metadata that is ours, once it has been reserved. */
  held: v.optional(v.number()),
});

export interface PoolName {
  readonly group: string;
  readonly name: string;
  readonly uuid: string;
}

/** What somebody does who uses the metadata of a pool. */
export interface Holding {
  /** Records that it is held. */
  readonly journal: Journal;
  /** How long to wait for others of us, who use it as long as a comparison takes; among them are other disks of the same session. */
  readonly waitSeconds: number;
  readonly signal?: AbortSignal | undefined;
}

/** Opens the device of a pool's metadata, for reading. LVM shows hidden volumes nowhere but under their device-mapper name. */
function openMetadata({ metadata: { major, minor } }: ActivePool): {
  readonly fd: number;
  readonly device: string;
} {
  const name = fs.readFileSync(`/sys/dev/block/${major}:${minor}/dm/name`, 'utf8').trim();
  const device = `/dev/mapper/${name}`;
  const fd = fs.openSync(device, 'r');
  const opened = deviceNumber(fs.fstatSync(fd, { bigint: true }).rdev);
  if (opened.major === major && opened.minor === minor) return { fd, device };
  fs.closeSync(fd);
  throw failed(`${device} is not the metadata of the thin pool`);
}

function inUse({ group, name }: Pick<PoolName, 'group' | 'name'>, waitSeconds: number): Error {
  const what = `the metadata of the thin pool ${group}/${name} is in use`;
  return failed(
    waitSeconds === 0
      ? `${what} at this moment, so it cannot be told: try again later`
      : `${what}, and was not free within ${waitSeconds} s`,
  );
}

/**
 * Does `work` while nobody else of us uses the metadata of the pool. The lock is flock(2) on the metadata's device, as for any program that
 * wants a block device to itself, and goes when we die.
 */
async function whileLocked<T>(
  name: Pick<PoolName, 'group' | 'name'>,
  pool: ActivePool,
  { waitSeconds, signal }: Omit<Holding, 'journal'>,
  work: (device: string) => Promise<T>,
): Promise<T> {
  const { fd, device } = openMetadata(pool);
  try {
    const args = ['-x', '-w', String(waitSeconds), '-E', String(LOCK_CONFLICT_EXIT_CODE), '3'];
    const { exitCode } = await run('flock', args, {
      descriptors: [fd],
      accept: [LOCK_CONFLICT_EXIT_CODE],
      timeoutMs: (waitSeconds + LOCK_GRACE_SECONDS) * 1000,
      signal,
    });
    if (exitCode !== 0) throw inUse(name, waitSeconds);
    return await work(device);
  } finally {
    fs.closeSync(fd);
  }
}

/** Whether a command came to its end: then the kernel refused what it asked for, and nothing of it is ours. */
function wasRefused(error: unknown): boolean {
  return error instanceof CommandError && error.exitCode !== undefined;
}

/** What is not known to be refused stays in the journal, for cleanup. */
async function reserve(pool: ActivePool, uuid: string, journal: Journal): Promise<JournalEntry> {
  const entry = journal.intend(POOL_METADATA_KIND, { pool: uuid });
  await reserveMetadata(pool).catch((error: unknown) => {
    if (wasRefused(error)) journal.undone(entry);
    throw error;
  });
  return journal.done(entry, { held: (await poolStatus(pool)).held });
}

/**
 * Holds a snapshot of a pool's metadata while `work` reads it from the device that it is given. It is recorded in the journal, and released
 * whatever happens. Throws if the pool is not active or not well, or if somebody else holds such a snapshot.
 */
export async function whileHoldingMetadata<T>(
  { group, name, uuid }: PoolName,
  { journal, ...waiting }: Holding,
  work: (device: string, pool: ActivePool) => Promise<T>,
): Promise<T> {
  const pool = await activePool(uuid);
  if (pool === undefined) throw failed(`the thin pool ${group}/${name} is not active`);
  return whileLocked({ group, name }, pool, waiting, async (device) => {
    const { held, sound } = await poolStatus(pool);
    if (!sound) throw failed(`the thin pool ${group}/${name} is full or damaged`);
    if (held !== undefined)
      throw failed(`somebody else holds the metadata of the thin pool ${group}/${name}`);
    const entry = await reserve(pool, uuid, journal);
    try {
      return await work(device, pool);
    } finally {
      await releaseMetadata(pool);
      journal.undone(entry);
    }
  });
}

/**
 * Releases what an entry stands for, and nothing else. When it was made nobody held one. So if we do not know that ours was
 * reserved, the one there is now is ours, but for a program that came in between: that one has the device open.
 */
async function releaseOurs(entry: JournalEntry, pool: ActivePool, device: string): Promise<void> {
  const { held: ours } = v.parse(Record, entry.data);
  const { held } = await poolStatus(pool);
  if (held === undefined || (ours !== undefined && held !== ours)) return;
  if (ours === undefined) {
    const users = usersOf(fs.realpathSync(device)).filter(({ pid }) => pid !== process.pid);
    if (users.length > 0) {
      const who = users.map(({ pid, command }) => `${command} (${pid})`).join(', ');
      throw failed(`the metadata of a thin pool (${device}) is held, and in use by ${who}`, {
        hint: 'wait until it has ended, then run cleanup again',
      });
    }
  }
  await releaseMetadata(pool);
}

const undoMetadata: UndoHandler = async (entry, { reporter }) => {
  const { pool: uuid } = v.parse(Record, entry.data);
  const volume = await volumeByUuid(uuid);
  if (volume === undefined) return;
  const pool = await activePool(uuid);
  if (pool === undefined) {
    throw failed(
      `the thin pool ${volume.group}/${volume.name} is not active: its metadata may still be held`,
      {
        hint: `activate it: lvchange --activate y ${volume.group}/${volume.name}; then run cleanup again`,
      },
    );
  }
  await whileLocked(volume, pool, { waitSeconds: UNDO_WAIT_SECONDS }, (device) =>
    releaseOurs(entry, pool, device),
  );
  reporter.debug(`the metadata of the thin pool ${volume.group}/${volume.name} is not held by us`);
};

export const metadataUndo = { [POOL_METADATA_KIND]: undoMetadata };
