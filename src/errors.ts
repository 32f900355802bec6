/** What went wrong, as far as the exit code is concerned. */
export type ErrorKind = 'failed' | 'usage' | 'locked' | 'integrity' | 'partial';

/** The exit codes of every command; a command ended by signal n exits with 128 + n. */
export const EXIT_CODES: Readonly<Record<ErrorKind, number>> = {
  failed: 1,
  usage: 2,
  locked: 3,
  integrity: 4,
  partial: 5,
};

export interface ErrorContext {
  /** What the user can do about it: printed as the second line. */
  hint?: string | undefined;
  /** Machine-readable facts (disk, chunk, path, …), for `--json` and `--debug`. */
  details?: Readonly<Record<string, unknown>> | undefined;
  cause?: unknown;
}

/** An error that is meant for the user: a sentence that names the thing, and a hint. */
export class ChunkmountError extends Error {
  override readonly name = 'ChunkmountError';
  readonly kind: ErrorKind;
  readonly hint: string | undefined;
  readonly details: Readonly<Record<string, unknown>>;

  constructor(kind: ErrorKind, message: string, context: ErrorContext = {}) {
    super(message, context.cause === undefined ? undefined : { cause: context.cause });
    this.kind = kind;
    this.hint = context.hint;
    this.details = context.details ?? {};
  }
}

export function failed(message: string, context?: ErrorContext): ChunkmountError {
  return new ChunkmountError('failed', message, context);
}

export function usage(message: string, context?: ErrorContext): ChunkmountError {
  return new ChunkmountError('usage', message, context);
}

export function exitCodeOf(error: unknown): number {
  return error instanceof ChunkmountError ? EXIT_CODES[error.kind] : EXIT_CODES.failed;
}

/** One line for humans, whatever was thrown. */
export function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}

/** The system error code (`ENOENT`, …) of what was thrown, if it has one. */
export function systemCode(error: unknown): string | undefined {
  if (typeof error !== 'object' || error === null || !('code' in error)) return undefined;
  return typeof error.code === 'string' ? error.code : undefined;
}

/** What to do about errors of the system that nobody foresaw where they happened. */
const SYSTEM_HINTS: Readonly<Record<string, string>> = {
  EACCES: 'run this as root, or as a user who may do that',
  EPERM: 'run this as root, or as a user who may do that',
  ENOSPC: 'make room on that file system',
  EDQUOT: 'make room: the quota of this user is used up',
  EFBIG: 'raise the limit of the size of files: ulimit -f, or LimitFSIZE= of the systemd unit',
  EMFILE: 'raise the limit of open files: ulimit -n, or LimitNOFILE= of the systemd unit',
  ENFILE: 'the host has too many files open: raise fs.file-max',
  EROFS: 'that file system is read-only: give another directory',
};

/** What to do about an error of the system, or one that says that it was caused by one; undefined if there is nothing to say. */
export function systemHint(error: unknown): string | undefined {
  const cause = error instanceof Error ? error.cause : undefined;
  return SYSTEM_HINTS[systemCode(error) ?? systemCode(cause) ?? ''];
}

/** What `read` returns, and nothing where it throws: for what is asked only as far as it can be told. */
export function orNone<T>(read: () => T[]): T[] {
  try {
    return read();
  } catch {
    return [];
  }
}
