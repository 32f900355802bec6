import { type ChunkmountError, failed } from '../../errors.js';
import { bootId } from '../../host/process-identity.js';
import { durableMark, identityOf, isSameImage, wasWritten, writeMark } from '../image-identity.js';
import type { OverlayRecord } from './record.js';

/** What is recorded of a base that nobody writes any more. QEMU has flushed what it wrote: this takes a fraction of a millisecond. */
export async function markBase(base: string): Promise<Pick<OverlayRecord, 'baseMark' | 'markedIn'>> {
  return { baseMark: await durableMark(base), markedIn: bootId() };
}

function diverged(record: OverlayRecord, what: string): ChunkmountError {
  const { domain, target, overlay, base } = record;
  return failed(`disk ${target} of ${domain.name}: its base ${base.path} ${what} after the snapshot`, {
    hint: `both are kept: ${overlay} has what the VM wrote meanwhile; merging it into a changed base would damage the file systems on it`,
    details: { domain: domain.name, disk: target, overlay, base: base.path },
  });
}

/**
 * Whether the base was written since the snapshot; undefined where that cannot be told, as after a commit has begun, or where a power
 * failure may have taken back its time of last write.
 */
function wasBaseWritten(record: OverlayRecord): boolean | undefined {
  if (record.committing === true) return undefined;
  return wasWritten(record.baseMark, writeMark(record.base.path), record.markedIn ?? record.qemu.bootId);
}

/** Throws if the base is known to be another one than the snapshot left. Where that cannot be told, merging gives what the VM sees. */
export function checkBase(record: OverlayRecord): void {
  const actual = identityOf(record.base.path);
  if (actual === undefined) throw diverged(record, 'was removed');
  if (!isSameImage(actual, record.base.identity)) throw diverged(record, 'was replaced');
  if (wasBaseWritten(record) === true) throw diverged(record, 'was written');
}

/** Whether the base is known not to have been written since the snapshot. */
export function isBaseUntouched(record: OverlayRecord): boolean {
  return wasBaseWritten(record) === false;
}
