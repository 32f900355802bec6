import { accessSync, constants, statSync } from 'node:fs';
import { ChunkmountError } from '../errors.js';
import { PACKAGES } from './program-packages.js';

/** A program could not be started, failed, or took too long. `stderr` is what it said, trimmed. */
export class CommandError extends ChunkmountError {
  constructor(
    message: string,
    readonly command: readonly string[],
    readonly exitCode: number | undefined,
    readonly stderr: string,
    hint?: string,
  ) {
    super('failed', message, { hint, details: { command, exitCode, stderr } });
  }
}

/** It never ran: whatever it was to ask for has not been asked. */
export class NotStartedError extends CommandError {}

/** How a program ended: what we look at in execa's result. */
export interface Outcome {
  readonly code?: string | undefined;
  readonly exitCode?: number | undefined;
  readonly signal?: string | undefined;
  readonly isCanceled: boolean;
  readonly timedOut: boolean;
  readonly stderr?: unknown;
  readonly originalMessage?: string | undefined;
}

const TOO_MANY_FILES = {
  why: 'too many files are open',
  hint: 'raise the limit of open files: ulimit -n, or LimitNOFILE= of the systemd unit; that of the whole host is fs.file-max',
} as const;

/** What the system lacks when it starts no program at all, by its error code. */
const SHORTAGES: Readonly<Record<string, { readonly why: string; readonly hint: string }>> = {
  EMFILE: TOO_MANY_FILES,
  ENFILE: TOO_MANY_FILES,
  EAGAIN: {
    why: 'there are too many processes',
    hint: 'raise the limit of processes: ulimit -u, or TasksMax= of the systemd unit',
  },
  ENOMEM: { why: 'there is too little memory', hint: 'end what needs much of it, and try again' },
};

/** The exit code, if it is 0 or one of `accept`. Throws CommandError for all else. */
export function check(
  program: string,
  args: readonly string[],
  result: Outcome,
  { accept = [], called = program }: { readonly accept?: readonly number[]; readonly called?: string } = {},
): number {
  const stderr = typeof result.stderr === 'string' ? result.stderr.trim() : '';
  const command = [program, ...args];
  if (result.code === 'ENOENT') {
    const apt = PACKAGES[program];
    throw new NotStartedError(
      `${program} is not installed`,
      command,
      undefined,
      '',
      apt === undefined ? undefined : `install it: apt-get install ${apt}`,
    );
  }
  const shortage = SHORTAGES[result.code ?? ''];
  if (shortage !== undefined) {
    const sentence = `${program} cannot be started: ${shortage.why} (${result.code})`;
    throw new NotStartedError(sentence, command, undefined, '', shortage.hint);
  }
  const said =
    stderr === ''
      ? ''
      : `: ${stderr
          .replace(/^error: /gm, '')
          .split('\n')
          .filter(Boolean)
          .join('; ')}`;
  if (result.isCanceled) throw new CommandError(`${called} was stopped`, command, undefined, stderr);
  if (result.timedOut)
    throw new CommandError(`${called} took too long and was ended${said}`, command, undefined, stderr);
  if (result.exitCode === undefined) {
    const why =
      result.signal === undefined
        ? (result.originalMessage ?? 'could not be started')
        : `was ended by ${result.signal}`;
    throw new CommandError(`${called} ${why}${said}`, command, undefined, stderr);
  }
  if (result.exitCode !== 0 && !accept.includes(result.exitCode)) {
    throw new CommandError(
      `${called} failed${said || ` with exit code ${result.exitCode}`}`,
      command,
      result.exitCode,
      stderr,
    );
  }
  return result.exitCode;
}

/** Throws CommandError, as starting it would, unless `program` is on PATH: for those who have to know beforehand. */
export function requireProgram(program: string): void {
  const directories = (process.env.PATH ?? '').split(':');
  if (directories.some((directory) => isExecutable(`${directory || '.'}/${program}`))) return;
  check(program, [], { code: 'ENOENT', isCanceled: false, timedOut: false });
}

function isExecutable(file: string): boolean {
  try {
    accessSync(file, constants.X_OK);
    return statSync(file).isFile();
  } catch {
    return false;
  }
}
