import { type ChunkmountError, failed } from '../errors.js';
import type { Reporter } from '../report/reporter.js';
import type { ChunkSource } from './chunk-source.js';
import type { Compression } from './to-qcow2.js';

export interface RestoreRequest {
  /** File or block device. */
  readonly to: string;
  readonly format: 'raw' | 'qcow2';
  readonly compression?: Compression | undefined;
  /** Replace an existing file, overwrite a block device. */
  readonly force: boolean;
  /** Change what is there already, writing only what differs. */
  readonly delta: boolean;
  /** Write zeros for damaged chunks and list them in the result, instead of throwing. */
  readonly keepGoing: boolean;
}

export interface RestoreContext {
  readonly reporter: Reporter;
  readonly signal: AbortSignal;
}

/** One restore on its way. */
export interface RestoreJob extends RestoreContext {
  readonly source: ChunkSource;
  readonly request: RestoreRequest;
}

/** What to throw when the user has stopped the restore; `hint` says what is left and how to go on. */
export function interrupted(disk: string, hint: string): ChunkmountError {
  return failed(`the restore of ${disk} was interrupted`, { hint });
}
