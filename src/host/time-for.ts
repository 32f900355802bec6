const LEAST_MS = 600_000;

/** The time limit, in milliseconds, of a program that works through `bytes`: even a slow one does `slowest` of them in a second. */
export function timeFor(bytes: number, slowest: number): number {
  return LEAST_MS + (bytes / slowest) * 1000;
}
