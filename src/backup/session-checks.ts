import { systemCode } from '../errors.js';
import { givenName, type NamedBy } from '../session/given-name.js';
import { StateDirectory } from '../session/state-directory.js';
import type { CheckResult } from './check-result.js';
import { listSessions, type SessionState, type SessionSummary } from './list-sessions.js';
import { readSessionRecord } from './session-record.js';

/** What is to be done about a session that is not all right. `locked` is no session. */
const TROUBLE: Readonly<Partial<Record<SessionState, string>>> = {
  dead: 'its daemon or its mount is gone',
  failed: 'chunks could not be read, or a snapshot is lost',
  incomplete: 'beginning or cleaning up was cut off',
};

/** Looks at what keeps a backup from beginning, and should not be there: sessions that went wrong, and locks that were kept. */
export async function checkSessions(
  stateDirectory: string,
  vms: readonly string[] | undefined,
): Promise<CheckResult[]> {
  const places = new StateDirectory(stateDirectory);
  let sessions: readonly SessionSummary[];
  try {
    sessions = await listSessions(places);
  } catch (error) {
    // Said of the state directory.
    if (['ENOTDIR', 'EACCES'].includes(systemCode(error) ?? '')) return [];
    throw error;
  }
  return sessions
    .filter(({ name }) => vms?.includes(name) ?? true)
    .flatMap((session) => checkSession(session, readSessionRecord(places.session(session.name))?.source));
}

function checkSession({ name, state, kept }: SessionSummary, namedBy: NamedBy | undefined): CheckResult[] {
  const need = `a backup of ${name}`;
  const trouble = TROUBLE[state];
  const results: CheckResult[] = [];
  if (trouble !== undefined) {
    const detail = `${state}: ${trouble}`;
    const fix = `chunkmount cleanup ${givenName(name, namedBy)}`;
    results.push({ name: `${name}: session`, state: 'missing', detail, need, fix });
  }
  // While a backup goes on, its lock is in nobody's way.
  if (kept && state !== 'mounted' && state !== 'working') {
    const fix = `chunkmount unlock ${givenName(name, namedBy)}`;
    results.push({ name: `${name}: lock`, state: 'missing', detail: 'kept by --keep-lock', need, fix });
  }
  return results;
}
