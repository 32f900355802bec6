import { parentPort } from 'node:worker_threads';
import { ChunkmountError, messageOf } from '../../errors.js';
import { OutputError } from './output.js';
import type { ThreadResult } from './task.js';

/** Does a thread's work, and tells what came of it. */
export function report(work: () => ThreadResult): void {
  let result: ThreadResult;
  try {
    result = work();
  } catch (error) {
    result = {
      kind: 'failure',
      message: messageOf(error),
      hint: error instanceof ChunkmountError ? error.hint : undefined,
      outputCode: error instanceof OutputError ? error.code : undefined,
    };
  }
  parentPort?.postMessage(result);
}
