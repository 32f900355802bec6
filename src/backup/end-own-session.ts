import { ChunkmountError } from '../errors.js';
import { mountAt } from '../host/mountinfo.js';
import type { BegunSession } from './begin-session.js';
import { type EndRequest, endSession } from './end-session.js';
import { treeSource } from './mountpoint.js';

/**
 * Ends a session that this process began. `taken`: somebody else had unmounted its tree before. If they have ended the session as well,
 * and begun another one of that name, that is left alone. Throws as endSession does.
 */
export async function endOwnSession(
  { name, id, mountpoint }: BegunSession,
  request: EndRequest,
): Promise<'ended' | 'taken'> {
  const taken = mountAt(mountpoint)?.source !== treeSource(name, id);
  try {
    const { kind } = await endSession({ ...request, session: id });
    return taken || kind === 'nothing' ? 'taken' : 'ended';
  } catch (error) {
    // Whoever took it away is about to end it.
    if (taken && error instanceof ChunkmountError && error.kind === 'locked') return 'taken';
    throw error;
  }
}
