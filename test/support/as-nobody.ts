import type { TestContext } from 'vitest';
import { systemCode } from '../../src/errors.js';

/** nobody and nogroup: what Debian has for users without rights. */
export const NOBODY = 65534;

/**
 * Runs `action` in this process as an ordinary user. Node refuses where libuv might use io_uring, which goes by the user that the
 * process had before, as Debian 13's does: then the test is skipped.
 */
export async function asNobody(context: TestContext, action: () => Promise<void>): Promise<void> {
  try {
    process.setegid!(NOBODY);
  } catch (error) {
    if (systemCode(error) === 'ERR_INVALID_STATE') context.skip('this Node.js changes no user');
    throw error;
  }
  try {
    process.seteuid!(NOBODY);
    await action();
  } finally {
    process.seteuid!(0);
    process.setegid!(0);
  }
}
