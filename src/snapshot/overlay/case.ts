import { type ChunkmountError, failed } from '../../errors.js';
import { Virsh } from '../../libvirt/virsh.js';
import type { JournalEntry } from '../../session/journal.js';
import type { UndoContext } from '../../session/undo.js';
import { type OverlayRecord, readOverlayRecord } from './record.js';

/** One overlay that is being undone. */
export interface OverlayCase {
  readonly virsh: Virsh;
  readonly entry: JournalEntry;
  readonly context: UndoContext;
  /** As the journal has it now. */
  readonly record: OverlayRecord;
  /** As performance.now() has it: the clock of the host may be set meanwhile. */
  readonly deadline: number;
}

/** How long the merge of one disk may take unless told otherwise. */
const DEFAULT_COMMIT_TIMEOUT_MS = 60 * 60 * 1000;

export function overlayCase(entry: JournalEntry, context: UndoContext): OverlayCase {
  return {
    virsh: new Virsh({ connect: readOverlayRecord(entry).connect, signal: context.signal }),
    entry,
    context,
    deadline: performance.now() + (context.commitTimeoutMs ?? DEFAULT_COMMIT_TIMEOUT_MS),
    get record() {
      return readOverlayRecord(context.journal.pending().find(({ seq }) => seq === entry.seq) ?? entry);
    },
  };
}

/** The error for an overlay that has to stay: why, and what to do. */
export function stuck({ record }: OverlayCase, why: string, hint: string): ChunkmountError {
  const { domain, target, overlay, base } = record;
  return failed(`disk ${target} of ${domain.name} cannot be merged: ${why}`, {
    hint,
    details: { domain: domain.name, disk: target, overlay, base: base.path },
  });
}
