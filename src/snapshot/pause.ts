import * as v from 'valibot';
import { isAlive, type ProcessIdentity } from '../host/process-identity.js';
import { Virsh } from '../libvirt/virsh.js';
import type { Journal, JournalEntry } from '../session/journal.js';
import type { UndoHandler } from '../session/undo.js';

export const PAUSE_KIND = 'pause';

/** virDomainPausedReason: unknown, by a user's command, from a snapshot, while a snapshot is made. */
const RESUMABLE: ReadonlySet<number> = new Set([0, 1, 7, 9]);

const record = v.object({
  connect: v.optional(v.string()),
  domain: v.object({ uuid: v.string(), name: v.string() }),
  qemu: v.object({ pid: v.number(), startTime: v.number(), bootId: v.string() }),
});

/** A VM that is to stand still. */
export interface PauseSubject {
  readonly virsh: Virsh;
  readonly domain: { readonly uuid: string; readonly name: string };
  /** The process that is paused: another one is not ours to resume. */
  readonly qemu: ProcessIdentity;
  readonly journal: Journal;
}

/** Pauses a running VM until the journal entry is undone. Returns undefined, having done nothing, if it does not run. */
export async function pause({
  virsh,
  domain,
  qemu,
  journal,
}: PauseSubject): Promise<JournalEntry | undefined> {
  if ((await virsh.state(domain.uuid)).state !== 'running') return undefined;
  const { connect } = virsh.options;
  const entry = journal.intend(PAUSE_KIND, {
    connect,
    domain: { uuid: domain.uuid, name: domain.name },
    qemu,
  });
  await virsh.suspend(domain.uuid);
  return journal.done(entry);
}

async function resume(virsh: Virsh, uuid: string): Promise<void> {
  const { state, reason } = await virsh.state(uuid);
  if (state === 'paused' && RESUMABLE.has(reason)) await virsh.resume(uuid);
}

/**
 * Does `work` while the VM stands still, and lets it go on whatever happens. Returns for how many milliseconds it stood, 0 if
 * it did not run anyway.
 */
export async function whilePaused(subject: PauseSubject, work: () => Promise<void>): Promise<number> {
  const { virsh, domain, journal } = subject;
  const entry = await pause(subject);
  const started = performance.now();
  try {
    await work();
  } finally {
    // Also after an abort: that is no reason to leave a VM standing.
    if (entry !== undefined) {
      await resume(virsh.withSignal(undefined), domain.uuid);
      journal.undone(entry);
    }
  }
  return entry === undefined ? 0 : performance.now() - started;
}

/** Whether the VM of a pause entry has stood still all the time; also if its QEMU process has ended. */
export async function isStillPaused(entry: JournalEntry): Promise<boolean> {
  const { connect, domain, qemu } = v.parse(record, entry.data);
  if (!isAlive(qemu)) return true;
  return (await new Virsh({ connect }).state(domain.uuid)).state !== 'running';
}

/** Lets the VM go on, if it is still the process that was paused and nothing else stopped it. */
const undoPause: UndoHandler = async (entry, context) => {
  const { connect, domain, qemu } = v.parse(record, entry.data);
  if (!isAlive(qemu)) return;
  const virsh = new Virsh({ connect, signal: context.signal });
  if ((await virsh.list('active')).every(({ uuid }) => uuid !== domain.uuid)) return;
  await resume(virsh, domain.uuid);
};

export const pauseUndo = { [PAUSE_KIND]: undoPause };
