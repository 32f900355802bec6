import * as fs from 'node:fs';
import { mountAt } from '../host/mountinfo.js';

const INTERVAL_MS = 250;
/** Asking costs a request to the daemon. */
const CHECKS_BETWEEN_QUESTIONS = 8;

/** Whether the daemon is gone. One that takes long to answer is not. */
async function isDead(mountpoint: string): Promise<boolean> {
  const slow = new Promise<boolean>((resolve) => setTimeout(resolve, INTERVAL_MS, false));
  const answer = fs.promises.statfs(mountpoint).then(
    () => false,
    () => true,
  );
  return Promise.race([answer, slow]);
}

/** Resolves when nothing serves `mountpoint` any more, or when `signal` is aborted. */
export async function waitForUnmount(mountpoint: string, signal: AbortSignal): Promise<void> {
  for (let check = 1; !signal.aborted && mountAt(mountpoint) !== undefined; check++) {
    if (check % CHECKS_BETWEEN_QUESTIONS === 0 && (await isDead(mountpoint))) return;
    await new Promise((resolve) => setTimeout(resolve, INTERVAL_MS));
  }
}
