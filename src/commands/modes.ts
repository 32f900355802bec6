import type { Command, OptionValues } from 'commander';
import { usage } from '../errors.js';

/** A way of using a command in which not all of its options mean something. */
export interface Mode {
  /** As one types it: `chain list`. */
  readonly name: string;
  /** Whether it is what a command line asks for. */
  readonly when: (options: OptionValues, args: readonly string[]) => boolean;
  /** The options that it goes by, as one types them: `--disk`, or `--snapshot=none` for that value alone. All, if undefined. */
  readonly takes?: readonly string[];
  /** What to do about others, where that is more than taking the mode that goes by them. */
  readonly instead?: Readonly<Record<string, string>>;
}

interface GivenOption {
  /** With its dashes. */
  readonly long: string;
  readonly value: unknown;
}

/** Where things are: all commands of a script may be told, also those that look there for nothing. */
const DIRECTORIES = ['--statedir', '--backupdir'];

/** The command's own options that are on the command line. */
export function givenOptions(command: Command): GivenOption[] {
  return command.options.flatMap((option) => {
    const name = option.attributeName();
    const value: unknown = command.getOptionValue(name);
    // `--snapshot` and `--no-snapshot` are two options with one value.
    const isMeant = command.getOptionValueSource(name) === 'cli' && option.negate === (value === false);
    return isMeant && option.long ? [{ long: option.long, value }] : [];
  });
}

function isTaken({ takes }: Mode, { long, value }: GivenOption): boolean {
  if (takes === undefined || DIRECTORIES.includes(long)) return true;
  return takes.includes(long) || takes.includes(`${long}=${value}`);
}

function advice({ instead = {} }: Mode, option: GivenOption, modes: readonly Mode[]): string {
  const given = instead[option.long];
  if (given !== undefined) return given;
  // The last ones are the most general.
  const other = modes.findLast((mode) => isTaken(mode, option));
  return other === undefined ? 'leave it out' : `for ${other.name}`;
}

function refusal(mode: Mode, refused: readonly GivenOption[], modes: readonly Mode[]): Error {
  const byAdvice = new Map<string, string[]>();
  for (const option of refused) {
    const text = advice(mode, option, modes);
    byAdvice.set(text, [...(byAdvice.get(text) ?? []), option.long]);
  }
  const names = refused.map(({ long }) => long).join(', ');
  const hints = [...byAdvice].map(([text, options]) => `${options.join(', ')}: ${text}`);
  return usage(`${mode.name} does not take ${names}`, { hint: hints.join('; ') });
}

/**
 * Makes a command refuse options that it would ignore, before it does anything: those on the command line that the first mode which
 * is asked for does not go by.
 */
export function addModes(command: Command, modes: readonly Mode[]): Command {
  return command.hook('preAction', () => {
    const mode = modes.find(({ when }) => when(command.opts(), command.args));
    if (mode === undefined) return;
    const refused = givenOptions(command).filter((option) => !isTaken(mode, option));
    if (refused.length > 0) throw refusal(mode, refused, modes);
  });
}
