import * as v from 'valibot';
import { failed, messageOf } from '../errors.js';
import { unmount } from '../fuse/unmount.js';
import { isDiskFull } from '../host/durable.js';
import { isMountedForOthers, mountAt, mountpointsOf } from '../host/mountinfo.js';
import { usersOf } from '../host/path-users.js';
import { isAlive, type ProcessIdentity, signalProcess, waitForEnd } from '../host/process-identity.js';
import { findProcesses } from '../host/process-list.js';
import type { Reporter } from '../report/reporter.js';
import type { Journal, JournalEntry } from '../session/journal.js';
import type { UndoContext, UndoHandler } from '../session/undo.js';
import { DAEMON_SCRIPT } from './daemon-config.js';
import { readSessionRecord } from './session-record.js';

/** Journal kind of the daemon and its mount. */
export const SERVE = 'serve';

const Data = v.object({
  mountpoint: v.string(),
  source: v.string(),
  sessionDirectory: v.string(),
  daemon: v.optional(v.object({ pid: v.number(), startTime: v.number(), bootId: v.string() })),
  /** A cleanup had taken the tree away when it told the daemon to end. */
  stoppedByUs: v.optional(v.boolean()),
});

/** The daemon that a journal names, if it got so far and can be read. */
export function daemonOf(entries: readonly JournalEntry[]): ProcessIdentity | undefined {
  const entry = entries.find(({ kind }) => kind === SERVE);
  const data = v.safeParse(Data, entry?.data);
  return data.success ? data.output.daemon : undefined;
}

/** How long a program that still has a file open may keep the VM from getting its disks back. */
const BUSY_GRACE_MS = 5_000;
const BUSY_RETRY_MS = 250;
/** Saving the index of a 10 TiB disk takes seconds. */
const DAEMON_END_TIMEOUT_MS = 60_000;
const DAEMON_TERM_TIMEOUT_MS = 30_000;
const DAEMON_KILL_TIMEOUT_MS = 10_000;

/** Whether our mount is there; what somebody else mounted on the same directory is not ours to unmount. */
function isMounted(mountpoint: string, source: string): boolean {
  return mountAt(mountpoint)?.source === source;
}

/**
 * Where to look for our mount. A session that began has it at the mountpoint: what is elsewhere then is somebody's bind mount, which
 * is left to die, because an `rsync --delete` from the empty directory beneath would erase a backup. One that did not begin may have it
 * where a link led mount(8) that was put in the mountpoint's place.
 */
function placeOf({ mountpoint, source, sessionDirectory }: v.InferOutput<typeof Data>): string {
  if (isMounted(mountpoint, source) || readSessionRecord(sessionDirectory) !== undefined) return mountpoint;
  return mountpointsOf(source)[0] ?? mountpoint;
}

/** Returns whether somebody still holds on to the tree, which then lives on without a place in the file system. */
async function takeAway(mountpoint: string, source: string, reporter: Reporter): Promise<boolean> {
  const deadline = performance.now() + BUSY_GRACE_MS;
  let problem = '';
  while (isMounted(mountpoint, source) && performance.now() < deadline) {
    try {
      await unmount(mountpoint);
    } catch (error) {
      problem = messageOf(error);
      await new Promise((resolve) => setTimeout(resolve, BUSY_RETRY_MS));
    }
  }
  if (!isMounted(mountpoint, source)) return false;
  const users = usersOf(mountpoint);
  // Who runs cleanup from inside the tree has us there, too; and nobody else, if we took the place of their shell.
  const others = users.filter(({ pid }) => pid !== process.pid);
  const names = others.map(({ pid, command }) => `${command} (${pid})`).join(', ');
  if (others.length > 0 || users.length === 0)
    reporter.warn(
      `${mountpoint} is still used by ${names || `somebody: ${problem}`}; it is taken away from them`,
    );
  await unmount(mountpoint, { lazy: true });
  return true;
}

/** The daemon as journalled, and any other that serves this session: we may have died before we noted it. */
function daemonsOf(data: v.InferOutput<typeof Data>): ProcessIdentity[] {
  const found = findProcesses(
    (argv) => argv.at(-2) === DAEMON_SCRIPT && argv.at(-1) === data.sessionDirectory,
  );
  return data.daemon !== undefined &&
    isAlive(data.daemon) &&
    !found.some(({ pid }) => pid === data.daemon?.pid)
    ? [...found, data.daemon]
    : found;
}

/**
 * Tells the daemon to end, and notes before that it is we who do: it stops while somebody may still read the tree, and the next cleanup
 * has to know as well that nothing is wrong with that.
 */
function tellToEnd(daemon: ProcessIdentity, entry: JournalEntry, journal: Journal): void {
  if (!isAlive(daemon)) return;
  try {
    journal.done(entry, { stoppedByUs: true });
  } catch (error) {
    // Then the daemon cannot note its end either, and counts as having died. What is undone next may be what takes up the room.
    if (!isDiskFull(error)) throw error;
  }
  signalProcess(daemon, 'SIGTERM');
}

/** Whether the daemon of a serve entry was told to end by a cleanup. */
export function isStoppedByUs({ data }: JournalEntry): boolean {
  return v.parse(Data, data).stoppedByUs === true;
}

async function endDaemon(
  daemon: ProcessIdentity,
  entry: JournalEntry,
  { journal, reporter }: UndoContext,
): Promise<void> {
  if (await waitForEnd(daemon, DAEMON_END_TIMEOUT_MS)) return;
  reporter.debug(`the daemon ${daemon.pid} does not end by itself`);
  tellToEnd(daemon, entry, journal);
  if (await waitForEnd(daemon, DAEMON_TERM_TIMEOUT_MS)) return;
  signalProcess(daemon, 'SIGKILL');
  if (await waitForEnd(daemon, DAEMON_KILL_TIMEOUT_MS)) return;
  throw failed(`the daemon (process ${daemon.pid}) cannot be ended`, {
    hint: 'it waits for a disk that does not answer: look at dmesg, then clean up again',
  });
}

/** Unmounts the tree, and ends the daemon: after that nothing reads the frozen disks any more. */
const stopServing: UndoHandler = async (entry, context) => {
  const data = v.parse(Data, entry.data);
  const daemons = daemonsOf(data);
  const place = placeOf(data);
  const wasMounted = isMounted(place, data.source);
  const held =
    wasMounted && ((await takeAway(place, data.source, context.reporter)) || isMountedForOthers(data.source));
  for (const daemon of daemons) {
    // Only an unmount that nobody holds up makes a daemon end by itself.
    if (!wasMounted || held) tellToEnd(daemon, entry, context.journal);
    await endDaemon(daemon, entry, context);
  }
  if (isMounted(place, data.source)) throw failed(`${place} cannot be unmounted`);
};

export const stopServingUndo = { [SERVE]: stopServing };
