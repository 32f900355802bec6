import * as fs from 'node:fs';
import * as path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import * as v from 'valibot';
import { ChunkmountError, failed, messageOf, systemCode } from '../errors.js';
import { isDiskFull, makeDirectory, readIfExists, replaceFile } from '../host/durable.js';
import { run } from '../host/exec.js';
import { isAlive, ownIdentity } from '../host/process-identity.js';
import { givenName, type NamedBy } from './given-name.js';

const Schema = v.object({
  owner: v.object({ pid: v.number(), startTime: v.number(), bootId: v.string() }),
  command: v.string(),
  since: v.string(),
  /** True: the lock outlives its owner until `unlock` (`--keep-lock`). */
  kept: v.boolean(),
  /** Its owner has it for moments, and changes nothing: worth waiting for. */
  brief: v.optional(v.boolean()),
});

/** Who holds a VM, as written into the lock file for people and for `list`. */
export type LockRecord = Readonly<v.InferOutput<typeof Schema>>;

/** Told to flock(1) as the exit code for "somebody else has it"; EX_TEMPFAIL of sysexits.h. */
const FLOCK_CONFLICT_EXIT_CODE = 75;

/** How long others wait for a lock that is held briefly: whoever takes it so must have done within that. */
export const BRIEF_SECONDS = 120;

/** How often, and every how many milliseconds, it is looked for what a holder says of itself. */
const HOLDER_LOOKS = 20;
const HOLDER_LOOK_MS = 10;

/** How often a lock is tried to be had whose holder says nothing of itself. */
const SILENT_TRIES = 5;

/** What flock(1) may need beyond the time that it waits. */
const FLOCK_GRACE_SECONDS = 60;

function locked(name: string, why: string, hint: string): ChunkmountError {
  return new ChunkmountError('locked', `${name} is locked: ${why}`, { hint, details: { name } });
}

function parseRecord(text: string | undefined): LockRecord | undefined {
  if (text === undefined || text === '') return undefined;
  try {
    return v.parse(Schema, JSON.parse(text));
  } catch {
    return undefined;
  }
}

/**
 * Whether flock(2) on `fd` could be had, waiting up to `seconds`. Its locks belong to the open file, which flock(1) shares with us as its
 * descriptor 3.
 */
async function flock(fd: number, seconds: number): Promise<boolean> {
  const { exitCode } = await run(
    'flock',
    [
      '--exclusive',
      '--timeout',
      String(seconds),
      '--conflict-exit-code',
      String(FLOCK_CONFLICT_EXIT_CODE),
      '3',
    ],
    // Not before flock(1) itself gives up.
    {
      descriptors: [fd],
      accept: [FLOCK_CONFLICT_EXIT_CODE],
      timeoutMs: (seconds + FLOCK_GRACE_SECONDS) * 1000,
    },
  );
  return exitCode === 0;
}

/** The lock is the kernel's, and the record is for people: a full disk must not keep a cleanup from making room. */
function writeRecord(file: string, record: LockRecord): void {
  try {
    replaceFile(file, `${JSON.stringify(record)}\n`);
  } catch (error) {
    if (!isDiskFull(error)) throw error;
  }
}

/** Root may do all but write where there is no writing, or no room. */
function unusableHint(error: unknown): string {
  const code = systemCode(error) ?? '';
  if (code === 'EROFS') return 'make its file system writable (dmesg may tell why it is not)';
  if (['ENOTDIR', 'EEXIST'].includes(code))
    return 'see what is there: it is no directory, or a link to one that is not mounted';
  return isDiskFull(error) ? 'make room there' : 'run this as root';
}

function openLockFile(directory: string, name: string): number {
  try {
    makeDirectory(directory);
    return fs.openSync(path.join(directory, `${name}.flock`), 'a', 0o600);
  } catch (error) {
    throw failed(`the state directory ${path.dirname(directory)} cannot be used: ${messageOf(error)}`, {
      hint: `${unusableHint(error)}, or give another one with --statedir or in CHUNKMOUNT_STATEDIR`,
      cause: error,
    });
  }
}
/** What whoever has the lock says of itself, which it does a moment after it got it; undefined if it has not by then. */
async function recordOfHolder(read: () => LockRecord | undefined): Promise<LockRecord | undefined> {
  for (let look = 1; look < HOLDER_LOOKS && read() === undefined; look++) await sleep(HOLDER_LOOK_MS);
  return read();
}

/**
 * Whether the lock on `fd` could be had. Who has it briefly is waited for. Of one that says nothing of itself nobody knows: it may have
 * got the lock just now, and the disk be slow, or have given it back since we asked.
 */
async function obtain(fd: number, read: () => LockRecord | undefined): Promise<boolean> {
  for (let tries = 0; tries < SILENT_TRIES; tries++) {
    if (await flock(fd, 0)) return true;
    const record = await recordOfHolder(read);
    if (record !== undefined) return record.brief === true && flock(fd, BRIEF_SECONDS);
  }
  return false;
}

/**
 * At most one command works on a VM at a time. The lock is flock(2) on `<directory>/<name>.flock`, so the kernel drops it
 * when we die, however that happens; beside it, `<name>.json` says who holds it. A record that is marked as
 * kept, or whose owner still lives, locks the VM as well.
 */
export class Lock {
  readonly #fd: number;
  readonly #record: string;

  private constructor(fd: number, record: string) {
    this.#fd = fd;
    this.#record = record;
  }

  /**
   * Takes the lock or throws an error of kind `locked`. With `evenIfKept` a lock kept by `--keep-lock` does not
   * stand in the way (for cleanup and unlock). `namedBy`: what the user gave the name of, for hints. Who takes it
   * `brief`ly lets others wait instead of failing.
   */
  static async acquire(
    directory: string,
    name: string,
    options: { command: string; namedBy?: NamedBy; evenIfKept?: boolean; brief?: boolean },
  ): Promise<Lock> {
    const recordFile = path.join(directory, `${name}.json`);
    const fd = openLockFile(directory, name);
    try {
      const readRecord = () => parseRecord(readIfExists(recordFile));
      const got = await obtain(fd, readRecord);
      const record = readRecord();
      if (!got) {
        const who =
          record === undefined
            ? 'another command'
            : `${record.command} (process ${record.owner.pid}, since ${record.since})`;
        throw locked(name, `${who} is working on it`, 'wait until it has ended');
      }
      if (record?.kept && options.evenIfKept !== true) {
        throw locked(
          name,
          `${record.command} kept the lock on ${record.since}`,
          `release it: chunkmount unlock ${givenName(name, options.namedBy)}`,
        );
      }
      if (record !== undefined && !record.kept && record.owner.pid !== process.pid && isAlive(record.owner)) {
        throw locked(
          name,
          `${record.command} (process ${record.owner.pid}) is working on it`,
          'wait until it has ended',
        );
      }
      const own: LockRecord = {
        owner: ownIdentity(),
        command: options.command,
        since: new Date().toISOString(),
        kept: record?.kept ?? false,
        ...(options.brief === true ? { brief: true } : {}),
      };
      writeRecord(recordFile, own);
      return new Lock(fd, recordFile);
    } catch (error) {
      fs.closeSync(fd);
      throw error;
    }
  }

  /** Gives the lock back. With `keep`, the VM stays locked until `unlock`. */
  release(options: { keep?: boolean } = {}): void {
    const record = parseRecord(readIfExists(this.#record));
    if (options.keep === true && record !== undefined) {
      replaceFile(this.#record, `${JSON.stringify({ ...record, kept: true })}\n`);
    } else if (record?.kept !== true) {
      fs.rmSync(this.#record, { force: true });
    }
    fs.closeSync(this.#fd);
  }

  /** Gives the lock back and drops the mark of `--keep-lock`. Returns whether there was one. */
  releaseKept(): boolean {
    const kept = parseRecord(readIfExists(this.#record))?.kept === true;
    fs.rmSync(this.#record, { force: true });
    fs.closeSync(this.#fd);
    return kept;
  }
}

/** How long `exclusively` waits for others, each of whom only looks and writes a few small files. */
const EXCLUSIVE_SECONDS = 30;

/**
 * Does `work` while no other process does what it does under the same name, which must not be a VM's. Nothing says who is at it,
 * because nobody may be for longer than moments. Throws an error of kind `locked` after half a minute.
 */
export async function exclusively<T>(directory: string, name: string, work: () => T): Promise<T> {
  const fd = openLockFile(directory, name);
  try {
    if (!(await flock(fd, EXCLUSIVE_SECONDS)))
      throw locked(name, `another command has held it for ${EXCLUSIVE_SECONDS} s`, 'try again');
    return work();
  } finally {
    fs.closeSync(fd);
  }
}

/** The names that have a lock record, with the record. */
export function listLocks(directory: string): Map<string, LockRecord> {
  const locks = new Map<string, LockRecord>();
  let files: string[];
  try {
    files = fs.readdirSync(directory);
  } catch (error) {
    // As with the sessions: of what is no directory complains who makes some.
    if (['ENOENT', 'ENOTDIR'].includes(systemCode(error) ?? '')) return locks;
    throw error;
  }
  for (const file of files) {
    if (!file.endsWith('.json')) continue;
    const record = parseRecord(readIfExists(path.join(directory, file)));
    if (record !== undefined) locks.set(file.slice(0, -'.json'.length), record);
  }
  return locks;
}
