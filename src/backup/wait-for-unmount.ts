import { mountAt } from '../host/mountinfo.js';

const INTERVAL_MS = 250;

/** Resolves when nothing is mounted at `mountpoint` any more, or when `signal` is aborted. */
export async function waitForUnmount(mountpoint: string, signal: AbortSignal): Promise<void> {
  while (!signal.aborted && mountAt(mountpoint) !== undefined) {
    await new Promise((resolve) => setTimeout(resolve, INTERVAL_MS));
  }
}
