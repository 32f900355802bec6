import { durableMark, wasWritten, writeMark } from '../image-identity.js';
import type { OverlayCase } from './case.js';
import { overlayFile } from './position.js';
import type { OverlayRecord } from './record.js';

/*
 * What is recorded of a merge. That an overlay's content is in its base is true when it is recorded; but a VM whose definition still names
 * the overlay may be started on it again. So it is believed only as long as nobody wrote the overlay since.
 */

/** Records that a merge begins. What was recorded of one before says nothing of this one. */
export function noteBegun({ context, entry, record }: OverlayCase): void {
  const { committing, pivoting, merged } = record;
  if (committing === true && pivoting !== true && merged !== true) return;
  context.journal.done(entry, { committing: true, pivoting: false, merged: false });
}

/** Records that the guest is about to be switched over to the base, which has all of the overlay's content. */
export function notePivoting({ context, entry, record }: OverlayCase): void {
  context.journal.done(entry, { pivoting: true, overlayMark: writeMark(record.overlay) });
}

/** Records that the base has all of the overlay's content. */
export async function noteMerged({ context, entry, record }: OverlayCase): Promise<void> {
  if (isKnownMerged(record)) return;
  const mark = overlayFile(record) === 'ours' ? { overlayMark: await durableMark(record.overlay) } : {};
  context.journal.done(entry, { merged: true, ...mark });
}

/** Nobody wrote the overlay since the pivot or the end of the merge was recorded. False where that cannot be told. */
function isUnwritten({ overlay, overlayMark, file }: OverlayRecord): boolean {
  return wasWritten(overlayMark, writeMark(overlay), file?.bootId) === false;
}

/** Whether the overlay was merged, and has nothing since that its base has not. */
export function isKnownMerged(record: OverlayRecord): boolean {
  return record.merged === true && (overlayFile(record) !== 'ours' || isUnwritten(record));
}

/** Whether a pivot was asked for when the base had all that the overlay has now. Nobody saw whether it took place. */
export function isPivotAsked(record: OverlayRecord): boolean {
  return record.pivoting === true && overlayFile(record) === 'ours' && isUnwritten(record);
}
