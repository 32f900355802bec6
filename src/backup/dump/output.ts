import * as fs from 'node:fs';
import { ChunkmountError, systemCode } from '../../errors.js';
import type { OpenOutput } from './task.js';

/** What a dump is written to took no more. `code` is the system's. */
export class OutputError extends ChunkmountError {
  constructor(
    path: string,
    readonly code: string | undefined,
    cause: unknown,
  ) {
    const full = code === 'ENOSPC' || code === 'EDQUOT';
    super('failed', `${path} cannot be written: ${full ? 'no space is left' : (code ?? String(cause))}`, {
      hint: full
        ? 'make room there, give another --backupdir, or --compress it'
        : 'look at the storage that it is on (dmesg)',
      cause,
    });
  }
}

/** Does something with an output. Throws OutputError. */
export function onOutput<T>({ path }: OpenOutput, action: () => T): T {
  try {
    return action();
  } catch (error) {
    throw new OutputError(path, systemCode(error), error);
  }
}

/** Writes `data` at `position`, or at the output's own position if that is null. Throws OutputError. */
export function writeTo(output: OpenOutput, data: Uint8Array, position: number | null): void {
  onOutput(output, () => {
    for (let done = 0; done < data.byteLength; ) {
      const at = position === null ? null : position + done;
      done += fs.writeSync(output.fd, data, done, data.byteLength - done, at);
    }
  });
}
