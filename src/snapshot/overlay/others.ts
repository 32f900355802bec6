import * as fs from 'node:fs';
import * as path from 'node:path';
import { orNone } from '../../errors.js';
import { readPending } from '../../session/journal.js';
import { StateDirectory } from '../../session/state-directory.js';
import { OVERLAY_KIND } from '../watched-kinds.js';
import { type OverlayCase, stuck } from './case.js';
import { type OverlayRecord, readOverlayRecord } from './record.js';
import { isMadeOn } from './stack.js';

/** The overlays that one journal has. */
interface RecordedOverlays {
  /** Of the session, or of the VM whose overlays are kept. */
  readonly name: string;
  /** What merges them: a command line without its VM. */
  readonly verb: string;
  readonly journal: string;
  readonly overlays: readonly OverlayRecord[];
}

function overlaysIn(journal: string): OverlayRecord[] {
  return readPending(journal)
    .filter(({ kind }) => kind === OVERLAY_KIND)
    .map(readOverlayRecord);
}

/**
 * All overlays of ours, as far as the state directory can be read: a journal that is being removed, or that is damaged, must not keep
 * anybody else's VM from its image.
 */
export function recordedOverlays(state: StateDirectory): RecordedOverlays[] {
  const sessions = orNone(() => state.sessions()).map((name) => ({
    name,
    verb: 'cleanup',
    journal: state.journal(name),
  }));
  const kept = orNone(() => state.kept()).map((name) => ({
    name,
    verb: 'cleanup --kept',
    journal: state.keptJournal(name),
  }));
  return [...sessions, ...kept].map((one) => ({
    ...one,
    overlays: orNone(() => overlaysIn(one.journal)),
  }));
}

/**
 * Throws if an overlay lies on this one that another journal has: a VM that was renamed is backed up under another name. Merged from
 * below, it would lie on another base than it is known to, and nobody could merge it any more.
 */
export function refuseUnderOthers(one: OverlayCase): void {
  const { record, context } = one;
  const own = path.resolve(context.journal.file);
  const state = StateDirectory.ofJournal(own);
  if (state === undefined) return;
  for (const { name, verb, journal, overlays } of recordedOverlays(state)) {
    if (path.resolve(journal) === own) continue;
    const above = overlays.find((other) => isMadeOn(other, record) && fs.existsSync(other.overlay));
    if (above === undefined) continue;
    throw stuck(
      one,
      `${above.overlay}, which was made by a backup of ${name}, lies on it`,
      `merge that one first: chunkmount ${verb} --vm=${name}; then run cleanup again`,
    );
  }
}
