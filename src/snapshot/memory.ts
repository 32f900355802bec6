import * as fs from 'node:fs';
import * as v from 'valibot';
import { failed, messageOf } from '../errors.js';
import { isAlive, type ProcessIdentity } from '../host/process-identity.js';
import { Virsh } from '../libvirt/virsh.js';
import type { Journal, JournalEntry } from '../session/journal.js';
import type { UndoHandler } from '../session/undo.js';
import { identityOf, identityOfDescriptor, imageIdentity, isSameImage } from './image-identity.js';
import { snapshotXml } from './snapshot-xml.js';

export const MEMORY_KIND = 'memory';

/** Memory is written at a disk's speed: this bounds a libvirt that hangs, not a large VM. */
export const MEMORY_TIMEOUT_MS = 2 * 3_600_000;

const record = v.object({
  connect: v.optional(v.string()),
  domain: v.object({ uuid: v.string(), name: v.string() }),
  qemu: v.object({ pid: v.number(), startTime: v.number(), bootId: v.string() }),
  file: v.string(),
  /** Known once the file has been made, empty. */
  identity: v.optional(imageIdentity),
  /** The memory is in it. */
  saved: v.optional(v.boolean()),
});

/** Whose memory is saved, and where. */
export interface MemorySubject {
  readonly virsh: Virsh;
  readonly domain: { readonly uuid: string; readonly name: string };
  readonly qemu: ProcessIdentity;
  readonly journal: Journal;
  readonly file: string;
}

/** Records and makes the file, empty: libvirt writes into an empty file that is there already. */
export function prepareMemoryFile({ virsh, domain, qemu, journal, file }: MemorySubject): JournalEntry {
  const { connect } = virsh.options;
  const entry = journal.intend(MEMORY_KIND, {
    connect,
    domain: { uuid: domain.uuid, name: domain.name },
    qemu,
    file,
  });
  let fd: number;
  try {
    fd = fs.openSync(file, 'wx', 0o600);
  } catch (error) {
    journal.undone(entry);
    throw failed(`the memory of ${domain.name} cannot be saved to ${file}: ${messageOf(error)}`, {
      hint: 'can the directory be written, and is there no such file yet?',
      cause: error,
    });
  }
  try {
    return journal.done(entry, { identity: identityOfDescriptor(fd) });
  } finally {
    fs.closeSync(fd);
  }
}

/** Saves the memory alone, of a VM that is paused so that its disks can be frozen at the same moment. */
export async function saveMemory(subject: MemorySubject, targets: readonly string[]): Promise<void> {
  const { virsh, domain, journal, file } = subject;
  const entry = prepareMemoryFile(subject);
  const xml = snapshotXml({ name: 'cm-memory', targets, overlays: new Map(), memoryFile: file });
  try {
    await virsh.snapshotCreate(domain.uuid, xml, { memory: true, timeoutMs: MEMORY_TIMEOUT_MS });
  } catch (error) {
    throw failed(`the memory of ${domain.name} could not be saved: ${messageOf(error)}`, {
      hint: `is there space for it where ${file} lies?`,
      cause: error,
    });
  }
  journal.done(entry, { saved: true });
}

/** Ends the saving if it is still under way, and removes the file if it is the one that was made. */
const undoMemory: UndoHandler = async (entry, context) => {
  const { connect, domain, qemu, file, identity, saved } = v.parse(record, entry.data);
  const virsh = new Virsh({ connect, signal: context.signal });
  // It may have ended long ago, and somebody migrates the VM, or backs it up, now.
  const saving = saved !== true && isAlive(qemu) && (await virsh.domainJob(domain.uuid))?.isSnapshot === true;
  if (saving) await virsh.abortDomainJob(domain.uuid);
  const actual = identityOf(file);
  if (actual === undefined) return;
  const empty = fs.statSync(file).size === 0;
  if (identity === undefined ? empty : isSameImage(identity, actual)) fs.unlinkSync(file);
};

export const memoryUndo = { [MEMORY_KIND]: undoMemory };
