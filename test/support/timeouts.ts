/** Set by scripts/lvm-vm in its machine, which has device-mapper, and in which everything takes several times as long. */
export const inLvmVm = process.env.CHUNKMOUNT_LVM_VM !== undefined;

/** Milliseconds for a test. A domain starts in 1 s and a session takes some; the rest is for busy machines. */
export const TEST_TIMEOUT_MS = inLvmVm ? 600_000 : 120_000;

/** Milliseconds for one command in a test: less than for the test, of which nobody would learn why it did not end. */
export const COMMAND_TIMEOUT_MS = TEST_TIMEOUT_MS * 0.75;
