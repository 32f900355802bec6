import * as v from 'valibot';
import { isAlive, type ProcessIdentity } from '../host/process-identity.js';
import { Virsh } from '../libvirt/virsh.js';
import type { Journal, JournalData, JournalEntry } from '../session/journal.js';
import type { UndoHandler } from '../session/undo.js';
import { imageMarks, markImages, writtenImages, writtenSince } from './image-marks.js';

export const PAUSE_KIND = 'pause';

/** virDomainPausedReason: unknown, by a user's command, from a snapshot, while a snapshot is made. */
const RESUMABLE: ReadonlySet<number> = new Set([0, 1, 7, 9]);

const record = v.object({
  connect: v.optional(v.string()),
  domain: v.object({ uuid: v.string(), name: v.string() }),
  qemu: v.object({ pid: v.number(), startTime: v.number(), bootId: v.string() }),
  /** It stood still before: it is not ours to let it go on. */
  found: v.optional(v.boolean()),
  /** Its images, if they are read while it stands still, and how they were then. */
  images: v.optional(imageMarks.images),
  marks: imageMarks.marks,
});

/** A VM that is to stand still. */
export interface PauseSubject {
  readonly virsh: Virsh;
  readonly domain: { readonly uuid: string; readonly name: string };
  /** The process that is paused: another one is not ours to resume. */
  readonly qemu: ProcessIdentity;
  readonly journal: Journal;
}

function entryData({ virsh, domain, qemu }: PauseSubject): JournalData {
  const { connect } = virsh.options;
  return { connect, domain: { uuid: domain.uuid, name: domain.name }, qemu };
}

/** Pauses a running VM until the journal entry is undone. Returns undefined, having done nothing, if it does not run. */
async function pause(
  subject: PauseSubject,
  images: readonly string[] = [],
): Promise<JournalEntry | undefined> {
  const { virsh, domain, journal } = subject;
  if ((await virsh.state(domain.uuid)).state !== 'running') return undefined;
  const entry = journal.intend(PAUSE_KIND, entryData(subject));
  await virsh.suspend(domain.uuid);
  return journal.done(entry, markImages(images));
}

/**
 * Pauses a running VM until the journal entry is undone, and leaves one that stands still as it is. Whoever lets it go on, or starts it
 * anew, is found out by what it then writes to its images. Returns whether it ran.
 */
export async function keepStill(subject: PauseSubject, images: readonly string[]): Promise<boolean> {
  if ((await pause(subject, images)) !== undefined) return true;
  const { journal } = subject;
  const entry = journal.intend(PAUSE_KIND, { ...entryData(subject), found: true });
  journal.done(entry, markImages(images));
  return false;
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

/** The images of a pause entry that somebody wrote, as far as that can be told. */
export function writtenWhilePaused({ data }: JournalEntry): string[] {
  const { qemu, images = [], marks } = v.parse(record, data);
  return writtenImages({ images, marks }, qemu.bootId);
}

/** Whether the VM of a pause entry has stood still all the time; also if its QEMU process has ended. */
export async function isStillPaused({ data }: JournalEntry): Promise<boolean> {
  const { connect, domain, qemu, images = [], marks } = v.parse(record, data);
  if (!isAlive(qemu)) return true;
  try {
    return (await new Virsh({ connect }).state(domain.uuid)).state !== 'running';
  } catch (error) {
    // It need not be asked if nothing was written.
    const written = writtenSince({ images, marks }, qemu.bootId);
    if (written.length > 0 && written.every((one) => one === false)) return true;
    throw error;
  }
}

/** Lets the VM go on, if it is still the process that was paused and nothing else stopped it. */
const undoPause: UndoHandler = async (entry, context) => {
  const { connect, domain, qemu, found } = v.parse(record, entry.data);
  if (found === true || !isAlive(qemu)) return;
  const virsh = new Virsh({ connect, signal: context.signal });
  if ((await virsh.list('active')).every(({ uuid }) => uuid !== domain.uuid)) return;
  await resume(virsh, domain.uuid);
};

export const pauseUndo = { [PAUSE_KIND]: undoPause };
