import { readPending } from '../session/journal.js';
import type { StateDirectory } from '../session/state-directory.js';
import { identityOf, isSameImage } from '../snapshot/image-identity.js';
import { type OverlayRecord, readOverlayRecord } from '../snapshot/overlay/record.js';
import { OVERLAY_KIND } from '../snapshot/watched-kinds.js';

export interface OverlayOnImage {
  /** Of the session that made it. */
  readonly name: string;
  readonly overlay: string;
  /** The session has ended, and left it for the next one. */
  readonly kept: boolean;
}

/**
 * An overlay of ours that lies on an image, with or without a VM that runs on it: whoever writes the image then spoils the disk. As far
 * as we may read the state directory.
 */
export function overlayOn(file: string, state: StateDirectory): OverlayOnImage | undefined {
  const image = identityOf(file);
  if (image === undefined) return undefined;
  const journals = [
    ...orNone(() => state.sessions()).map((name) => ({ name, kept: false, journal: state.journal(name) })),
    ...orNone(() => state.kept()).map((name) => ({ name, kept: true, journal: state.keptJournal(name) })),
  ];
  for (const { name, kept, journal } of journals) {
    for (const { base, overlay } of overlaysIn(journal)) {
      if (isSameImage(base.identity, image)) return { name, overlay, kept };
    }
  }
  return undefined;
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
