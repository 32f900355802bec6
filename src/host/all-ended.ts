/**
 * Waits until all have ended, and only then throws, the first error in their order: what is undone because of it must not be begun by
 * another of them a moment later.
 */
export async function allEnded<T extends readonly unknown[] | []>(
  work: T,
): Promise<{ -readonly [P in keyof T]: Awaited<T[P]> }> {
  const outcomes = await Promise.allSettled(work);
  for (const outcome of outcomes) if (outcome.status === 'rejected') throw outcome.reason;
  // All have been fulfilled.
  return Promise.all(work);
}
