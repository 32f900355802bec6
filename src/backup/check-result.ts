/** ok: there. missing: what needs it does not work. poor: it works, with a drawback. */
export type CheckState = 'ok' | 'missing' | 'poor';

/** What `doctor` found out about one thing. */
export interface CheckResult {
  readonly name: string;
  readonly state: CheckState;
  /** What was found. */
  readonly detail: string;
  /** What it is for, when it is missing. */
  readonly need?: string;
  /** A command that mends it. */
  readonly fix?: string;
  /** Bytes that are free there. */
  readonly free?: number;
}
