import { mountAnswers } from '../host/mount-answers.js';
import { mountAt } from '../host/mountinfo.js';
import type { BegunSession } from './begin-session.js';
import { treeSource } from './mountpoint.js';

const INTERVAL_MS = 250;
/** Asking costs a process, and a request to the daemon. */
const CHECKS_BETWEEN_QUESTIONS = 8;
const ANSWER_TIMEOUT_MS = 1_000;

/** Resolves when nothing serves the session's tree any more, or when `signal` is aborted. A daemon that takes long to answer is not gone. */
export async function waitForUnmount(
  { name, id, mountpoint }: Pick<BegunSession, 'name' | 'id' | 'mountpoint'>,
  signal: AbortSignal,
): Promise<void> {
  for (let check = 1; !signal.aborted && mountAt(mountpoint)?.source === treeSource(name, id); check++) {
    const asks = check % CHECKS_BETWEEN_QUESTIONS === 0;
    if (asks && (await mountAnswers(mountpoint, ANSWER_TIMEOUT_MS)) === false) return;
    await new Promise((resolve) => setTimeout(resolve, INTERVAL_MS));
  }
}
