import * as fs from 'node:fs';
import * as path from 'node:path';
import { readPending } from '../../session/journal.js';
import { StateDirectory } from '../../session/state-directory.js';
import { OVERLAY_KIND } from '../watched-kinds.js';
import { type OverlayCase, stuck } from './case.js';
import { type OverlayRecord, readOverlayRecord } from './record.js';
import { isMadeOn } from './stack.js';

/** A journal that is being removed, or that is damaged, must not keep anybody else's VM on its overlay. */
function overlaysIn(journal: string): OverlayRecord[] {
  try {
    return readPending(journal)
      .filter(({ kind }) => kind === OVERLAY_KIND)
      .map(readOverlayRecord);
  } catch {
    return [];
  }
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
  const journals = [
    ...state.sessions().map((name) => ({ name, verb: 'cleanup', file: state.journal(name) })),
    ...state.kept().map((name) => ({ name, verb: 'cleanup --kept', file: state.keptJournal(name) })),
  ];
  for (const { name, verb, file } of journals.filter((journal) => path.resolve(journal.file) !== own)) {
    const above = overlaysIn(file).find((other) => isMadeOn(other, record) && fs.existsSync(other.overlay));
    if (above === undefined) continue;
    throw stuck(
      one,
      `${above.overlay}, which was made by a backup of ${name}, lies on it`,
      `merge that one first: chunkmount ${verb} --vm=${name}; then run cleanup again`,
    );
  }
}
