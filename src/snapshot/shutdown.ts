import * as v from 'valibot';
import { failed } from '../errors.js';
import { isAlive, type ProcessIdentity } from '../host/process-identity.js';
import { Virsh } from '../libvirt/virsh.js';
import type { Journal, JournalEntry } from '../session/journal.js';
import type { UndoHandler } from '../session/undo.js';

export const SHUTDOWN_KIND = 'shutdown';

const POLL_MS = 500;

const record = v.object({
  connect: v.optional(v.string()),
  domain: v.object({ uuid: v.string(), name: v.string() }),
  /** The process that is asked to end, and until when it may take, in milliseconds since 1970. Not in journals of older versions. */
  qemu: v.optional(v.object({ pid: v.number(), startTime: v.number(), bootId: v.string() })),
  until: v.optional(v.number()),
});

/** A VM that is to be shut down for its snapshot, and started again. */
export interface ShutdownSubject {
  readonly virsh: Virsh;
  readonly domain: { readonly uuid: string; readonly name: string; readonly persistent: boolean };
  /** Its process. */
  readonly qemu: ProcessIdentity | undefined;
  readonly journal: Journal;
  readonly signal?: AbortSignal | undefined;
}

async function isOff(virsh: Virsh, uuid: string): Promise<boolean> {
  return (await virsh.list('active')).every((domain) => domain.uuid !== uuid);
}

/** Waits until the VM is off. Returns whether it is by then. */
async function isOffBy(
  until: number,
  virsh: Virsh,
  uuid: string,
  signal: AbortSignal | undefined,
): Promise<boolean> {
  while (!(await isOff(virsh, uuid))) {
    signal?.throwIfAborted();
    if (Date.now() > until) return false;
    await new Promise((resolve) => setTimeout(resolve, POLL_MS));
  }
  return true;
}

/**
 * Asks the guest to shut down and waits until it has. The journal entry stands for the duty to start it again. Throws, leaving
 * the VM running, when it has not shut down in time.
 */
export async function shutDown(subject: ShutdownSubject, timeoutMs: number): Promise<JournalEntry> {
  const { virsh, domain, qemu, journal, signal } = subject;
  if (!domain.persistent) {
    throw failed(`${domain.name} is transient: shut down, it would be gone`, {
      hint: 'leave out --shutdown',
    });
  }
  const { connect } = virsh.options;
  const until = Date.now() + timeoutMs;
  const { uuid, name } = domain;
  const entry = journal.intend(SHUTDOWN_KIND, { connect, domain: { uuid, name }, qemu, until });
  await virsh.shutdown(uuid);
  if (!(await isOffBy(until, virsh, uuid, signal))) {
    throw failed(`${name} did not shut down within ${Math.round(timeoutMs / 1000)} s`, {
      hint: 'does the guest listen to the power button (acpid, qemu-guest-agent)? --shutdown-timeout=SECONDS gives it longer',
    });
  }
  return journal.done(entry);
}

/** Starts the VM again, or lets it go on if it was started paused. */
async function startAgain(virsh: Virsh, uuid: string): Promise<void> {
  if (await isOff(virsh, uuid)) {
    await virsh.start(uuid);
    return;
  }
  if ((await virsh.state(uuid)).state === 'paused') await virsh.resume(uuid);
}

/** The VM runs again: the duty is done. */
export async function restart(
  { virsh, domain, journal }: ShutdownSubject,
  entry: JournalEntry,
): Promise<void> {
  await startAgain(virsh.withSignal(undefined), domain.uuid);
  journal.undone(entry);
}

const undoShutdown: UndoHandler = async (entry, { reporter, signal }) => {
  const { connect, domain, qemu, until = 0 } = v.parse(record, entry.data);
  const virsh = new Virsh({ connect, signal });
  if ((await virsh.list()).every(({ uuid }) => uuid !== domain.uuid)) return;
  // A guest that was asked goes on with it when nobody waits any more, and nobody would start it again.
  if (!entry.done && qemu !== undefined && isAlive(qemu) && Date.now() < until) {
    const seconds = Math.ceil((until - Date.now()) / 1000);
    reporter.notice(`${domain.name} may still shut down: waiting up to ${seconds} s, to start it again then`);
    await isOffBy(until, virsh, domain.uuid, signal);
  }
  await startAgain(virsh, domain.uuid);
};

export const shutdownUndo = { [SHUTDOWN_KIND]: undoShutdown };
