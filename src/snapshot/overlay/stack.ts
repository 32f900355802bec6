import * as fs from 'node:fs';
import { imageInfo } from '../../image/qemu-img.js';
import type { JournalEntry } from '../../session/journal.js';
import { identityOf, isSameImage } from '../image-identity.js';
import { OVERLAY_KIND } from '../watched-kinds.js';
import { markBase } from './base-check.js';
import type { OverlayCase } from './case.js';
import { type OverlayRecord, readOverlayRecord } from './record.js';

/*
 * An overlay that is kept between sessions has that of the next session on it, which is kept in its place. It is then merged from
 * below: its content goes into its base, and what lay on it lies on the base.
 */

/** Whether an overlay was made on that one. */
export function isMadeOn({ base }: OverlayRecord, { overlay, file }: OverlayRecord): boolean {
  return file !== undefined && base.path === overlay && isSameImage(base.identity, file);
}

/** The overlays of the same journal that were made on this one. */
export function entriesOn({ record, entry, context }: OverlayCase): JournalEntry[] {
  return context.journal.pending().filter((other) => {
    if (other.kind !== OVERLAY_KIND || other.seq === entry.seq) return false;
    const above = readOverlayRecord(other);
    const sameDisk = above.domain.uuid === record.domain.uuid && above.target === record.target;
    return sameDisk && isMadeOn(above, record);
  });
}

/**
 * Records that what was made on this overlay lies on its base now, and how that was left. `unseen`: others may have written it since
 * the merge began.
 */
export async function passOnBase(
  one: OverlayCase,
  { unseen }: { readonly unseen: boolean | Promise<boolean> },
): Promise<void> {
  const { base, definition } = one.record;
  // Nothing is merged into a base that is gone.
  const marking = fs.existsSync(base.path) ? markBase(base.path) : {};
  const [mark, mergeUnseen] = await Promise.all([marking, unseen]);
  for (const other of entriesOn(one))
    one.context.journal.done(other, { base, definition, ...mark, committing: false, mergeUnseen });
}

/**
 * Whether a merge from below came to its end although nobody recorded that: QEMU makes the image above name the base as its backing
 * file once all is there, and not before.
 */
export async function wasMergedFromBelow({ record, context }: OverlayCase): Promise<boolean> {
  const { above, base } = record;
  if (above === undefined) return false;
  const now = identityOf(above.path);
  if (now === undefined || !isSameImage(now, above.identity)) return false;
  const { size } = fs.statSync(above.path);
  // A VM may run on it.
  const image = { path: above.path, format: 'qcow2', device: false, fileSize: size, inUse: true };
  return (await imageInfo(image, context.signal)).backing?.name === base.path;
}
