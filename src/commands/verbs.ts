import type { CommandModule } from './context.js';

/** The verb that is meant when none is given. */
export const DEFAULT_VERB = 'mount';

/**
 * All verbs, in the order of the help, each in a module of its own. Loading them all takes longer than most of them work, so
 * only the one that is wanted is loaded.
 */
const VERBS: Readonly<Record<string, () => Promise<CommandModule>>> = {
  mount: async () => (await import('./mount.js')).mountCommand,
  cleanup: async () => (await import('./cleanup.js')).cleanupCommand,
  run: async () => (await import('./run.js')).runCommand,
  dump: async () => (await import('./dump.js')).dumpCommand,
  chain: async () => (await import('./chain.js')).chainCommand,
  list: async () => (await import('./list.js')).listCommand,
  estimate: async () => (await import('./estimate.js')).estimateCommand,
  unlock: async () => (await import('./unlock.js')).unlockCommand,
  restore: async () => (await import('./restore.js')).restoreCommand,
  verify: async () => (await import('./verify.js')).verifyCommand,
  diff: async () => (await import('./diff.js')).diffCommand,
  'image-mount': async () => (await import('./image-mount.js')).imageMountCommand,
  'image-unmount': async () => (await import('./image-mount.js')).imageUnmountCommand,
  boot: async () => (await import('./boot.js')).bootCommand,
  doctor: async () => (await import('./doctor.js')).doctorCommand,
  completion: async () => (await import('./completion.js')).completionCommand(DEFAULT_VERB),
};

/** Options of the default verb alone: a command line that begins with one has no verb. */
const MOUNT_OPTION = /^--(vm|image|all-running)(=|$)/;

/** Says something about all the others. */
const COMPLETION_VERB = 'completion';

/** The verbs that a command line can mean: one if that is plain from its first word, else all. */
export async function loadVerbs([first = '']: readonly string[]): Promise<readonly CommandModule[]> {
  const name = MOUNT_OPTION.test(first) ? DEFAULT_VERB : first;
  const wanted =
    Object.hasOwn(VERBS, name) && name !== COMPLETION_VERB ? [VERBS[name]!] : Object.values(VERBS);
  return Promise.all(wanted.map((load) => load()));
}

/** All verbs, in the order of the help. */
export function loadAllVerbs(): Promise<readonly CommandModule[]> {
  return loadVerbs([]);
}
