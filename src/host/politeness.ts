/** How a process gives way to others. */
export interface Politeness {
  /** 0 to 19; see nice(1). */
  readonly nice?: number | undefined;
  readonly ionice?: IoPriority | undefined;
}

/** See ionice(1). */
export interface IoPriority {
  readonly class: 'idle' | 'best-effort' | 'realtime';
  /** 0 to 7, 0 first; not for idle. */
  readonly level?: number | undefined;
}

const CLASS_NUMBERS: Readonly<Record<IoPriority['class'], number>> = {
  realtime: 1,
  'best-effort': 2,
  idle: 3,
};

/**
 * The command, to be started through nice and ionice, which then become it: set from outside later, a priority would be that of one
 * thread alone.
 */
export function politeCommand(
  command: readonly [string, ...string[]],
  { nice, ionice }: Politeness = {},
): readonly [string, ...string[]] {
  let polite = command;
  if (ionice !== undefined) {
    const level = ionice.level === undefined ? [] : ['-n', String(ionice.level)];
    polite = ['ionice', '-c', String(CLASS_NUMBERS[ionice.class]), ...level, ...polite];
  }
  return nice === undefined ? polite : ['nice', '-n', String(nice), ...polite];
}
