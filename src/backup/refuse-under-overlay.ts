import { failed } from '../errors.js';
import { readPending } from '../session/journal.js';
import type { StateDirectory } from '../session/state-directory.js';
import { identityOf, isSameImage } from '../snapshot/image-identity.js';
import { type OverlayRecord, readOverlayRecord } from '../snapshot/overlay/record.js';
import { OVERLAY_KIND } from '../snapshot/watched-kinds.js';

/**
 * Throws if an overlay of ours lies on an image that is to be overwritten or replaced: that is only a part of the disk then, also while
 * its VM is off and has nothing open. As far as we may read the state directory.
 */
export function refuseUnderOverlay(file: string, state: StateDirectory): void {
  const [image] = orNone(() => [identityOf(file)]);
  if (image === undefined) return;
  const journals = [
    ...orNone(() => state.sessions()).map((name) => ({
      name,
      verb: 'cleanup',
      journal: state.journal(name),
    })),
    ...orNone(() => state.kept()).map((name) => ({
      name,
      verb: 'cleanup --kept',
      journal: state.keptJournal(name),
    })),
  ];
  for (const { name, verb, journal } of journals) {
    const found = overlaysIn(journal).find(({ base }) => isSameImage(base.identity, image));
    if (found === undefined) continue;
    throw failed(`${file} is only a part of the disk of ${name}: ${found.overlay} lies on it`, {
      hint: `give the VM its image back first: chunkmount ${verb} --vm=${name}`,
    });
  }
}

/** What cannot be read must not keep anybody from restoring: then nothing is known. */
function orNone<T>(read: () => T[]): T[] {
  try {
    return read();
  } catch {
    return [];
  }
}

function overlaysIn(journal: string): OverlayRecord[] {
  return orNone(() =>
    readPending(journal)
      .filter(({ kind }) => kind === OVERLAY_KIND)
      .map(readOverlayRecord),
  );
}
