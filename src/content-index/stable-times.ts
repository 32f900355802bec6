/** What decides the mtimes of one session. All in whole seconds since the epoch. */
export interface SessionTimes {
  /** The moment of the snapshot. */
  readonly snapshot: number;
  /** No mtime that this tree ever showed, as far as its records reach, is later. */
  readonly newest: number;
  /**
   * Snapshot time of an earlier session that did not end properly, else 0: it may have shown chunks with times that
   * were not recorded, so a changed chunk must be later than those.
   */
  readonly unsettled: number;
}

/**
 * mtime of a chunk whose content differs from what its row says: later than it ever had. Its row alone does not tell: a
 * session that was cut off may have shown it with a later time and other content, before it was reverted.
 */
export function changedMtime(times: SessionTimes, previous: number): number {
  return Math.max(times.snapshot, previous + 1, times.newest + 1, times.unsettled + 1);
}

/** mtime of a chunk of which no row is known: later than anything the tree ever showed. */
export function newMtime(times: SessionTimes): number {
  return changedMtime(times, 0);
}

/** No chunk can have a later mtime than this in the session. */
export function latestPossibleMtime(times: SessionTimes): number {
  return newMtime(times);
}
