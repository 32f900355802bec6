import { usage } from '../errors.js';

/** virt-backup's actions and our verbs. */
const ACTIONS: Readonly<Record<string, string>> = {
  chunkmount: 'mount',
  mount: 'mount',
  dump: 'dump',
  cleanup: 'cleanup',
  unlock: 'unlock',
};

/** virt-backup's options that are actions. */
const FLAGS: Readonly<Record<string, string>> = {
  '--dump': 'dump',
  '--cleanup': 'cleanup',
  '--unlock': 'unlock',
};

/**
 * Translates virt-backup's spellings (`--action=dump`, `--dump`, `--cleanup`, `--unlock`) into our verbs. What comes after
 * `--` is the user's own and stays as it is.
 */
export function translateSpellings(args: readonly string[]): string[] {
  const end = args.indexOf('--');
  const own = end < 0 ? [...args] : args.slice(0, end);
  const rest = end < 0 ? [] : args.slice(end);
  const kept: string[] = [];
  let verb: string | undefined;
  for (let i = 0; i < own.length; i++) {
    const argument = own[i]!;
    if (argument === '--action' || argument.startsWith('--action=')) {
      const action = argument === '--action' ? own[++i] : argument.slice('--action='.length);
      verb = action === undefined ? undefined : ACTIONS[action];
      if (verb === undefined) {
        throw usage(action === undefined ? '--action needs a value' : `--action=${action} is not possible`, {
          hint: 'one of: chunkmount, dump, cleanup, unlock',
        });
      }
    } else if (FLAGS[argument] !== undefined) {
      verb = FLAGS[argument];
    } else {
      kept.push(argument);
    }
  }
  return verb === undefined ? [...args] : [verb, ...kept, ...rest];
}
