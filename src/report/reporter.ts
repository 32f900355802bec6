/** Long work whose amount is known beforehand. */
export interface ProgressTask {
  /** Adds `amount` units (bytes, unless the task says otherwise) to what is done. */
  advance(amount: number): void;
  /** Ends the display; must be called exactly once. */
  end(): void;
}

/**
 * Where everything goes that is not a command's result. Nothing here writes to stdout: that belongs to results
 * alone. Implementations must not throw: a full log file system must not end a backup.
 */
export interface Reporter {
  /** Reasons and details, shown with `--debug` only. */
  debug(message: string): void;
  /** Something the user ought to know although all is well: a skipped cdrom, a phase that began. */
  notice(message: string): void;
  /** Something is wrong but the command goes on. */
  warn(message: string): void;
  /** Shows progress of `total` bytes of work called `label`. */
  progress(label: string, total: number): ProgressTask;
}

export const silentReporter: Reporter = {
  debug() {},
  notice() {},
  warn() {},
  progress: () => ({ advance() {}, end() {} }),
};
