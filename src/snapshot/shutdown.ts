import * as v from 'valibot';
import { failed } from '../errors.js';
import { Virsh } from '../libvirt/virsh.js';
import type { Journal, JournalEntry } from '../session/journal.js';
import type { UndoHandler } from '../session/undo.js';

export const SHUTDOWN_KIND = 'shutdown';

const POLL_MS = 500;

const record = v.object({
  connect: v.optional(v.string()),
  domain: v.object({ uuid: v.string(), name: v.string() }),
});

/** A VM that is to be shut down for its snapshot, and started again. */
export interface ShutdownSubject {
  readonly virsh: Virsh;
  readonly domain: { readonly uuid: string; readonly name: string; readonly persistent: boolean };
  readonly journal: Journal;
  readonly signal?: AbortSignal | undefined;
}

async function isOff(virsh: Virsh, uuid: string): Promise<boolean> {
  return (await virsh.list('active')).every((domain) => domain.uuid !== uuid);
}

/**
 * Asks the guest to shut down and waits until it has. The journal entry stands for the duty to start it again. Throws, leaving
 * the VM running, when it has not shut down in time.
 */
export async function shutDown(subject: ShutdownSubject, timeoutMs: number): Promise<JournalEntry> {
  const { virsh, domain, journal, signal } = subject;
  if (!domain.persistent) {
    throw failed(`${domain.name} is transient: shut down, it would be gone`, {
      hint: 'leave out --shutdown',
    });
  }
  const { connect } = virsh.options;
  const entry = journal.intend(SHUTDOWN_KIND, { connect, domain: { uuid: domain.uuid, name: domain.name } });
  await virsh.shutdown(domain.uuid);
  const deadline = Date.now() + timeoutMs;
  while (!(await isOff(virsh, domain.uuid))) {
    signal?.throwIfAborted();
    if (Date.now() > deadline) {
      throw failed(`${domain.name} did not shut down within ${Math.round(timeoutMs / 1000)} s`, {
        hint: 'does the guest listen to the power button (acpid, qemu-guest-agent)? --shutdown-timeout=SECONDS gives it longer',
      });
    }
    await new Promise((resolve) => setTimeout(resolve, POLL_MS));
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

const undoShutdown: UndoHandler = async (entry, context) => {
  const { connect, domain } = v.parse(record, entry.data);
  const virsh = new Virsh({ connect, signal: context.signal });
  if ((await virsh.list()).every(({ uuid }) => uuid !== domain.uuid)) return;
  await startAgain(virsh, domain.uuid);
};

export const shutdownUndo = { [SHUTDOWN_KIND]: undoShutdown };
