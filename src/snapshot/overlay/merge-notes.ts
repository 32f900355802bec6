import * as fs from 'node:fs';
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
export function notePivoting({ context, entry }: OverlayCase): void {
  context.journal.done(entry, { pivoting: true, pivotAsked: Date.now() });
}

/** Records that the base has all of the overlay's content. */
export async function noteMerged({ context, entry, record }: OverlayCase): Promise<void> {
  if (isKnownMerged(record)) return;
  const mark = overlayFile(record) === 'ours' ? { overlayMark: await durableMark(record.overlay) } : {};
  context.journal.done(entry, { merged: true, ...mark });
}

/** Nobody wrote the overlay since the end of the merge was recorded. False where that cannot be told. */
function isUnwritten({ overlay, overlayMark, file }: OverlayRecord): boolean {
  return wasWritten(overlayMark, writeMark(overlay), file?.bootId) === false;
}

/** Whether the overlay was merged, and has nothing since that its base has not. */
export function isKnownMerged(record: OverlayRecord): boolean {
  return record.merged === true && (overlayFile(record) !== 'ours' || isUnwritten(record));
}

/**
 * Whether a pivot was asked for, and the overlay was not written more than so many milliseconds after that: a guest goes on writing, to
 * both, while it is switched over, and QEMU writes the overlay's metadata. Nobody saw whether the pivot took place.
 */
export function isPivotAsked(record: OverlayRecord, withinMs: number): boolean {
  const { overlay, pivoting, pivotAsked = 0 } = record;
  if (pivoting !== true || overlayFile(record) !== 'ours') return false;
  return fs.statSync(overlay).mtimeMs <= pivotAsked + withinMs;
}
