import * as fs from 'node:fs';
import * as os from 'node:os';
import * as path from 'node:path';
import { Writable } from 'node:stream';
import { expect, onTestFinished } from 'vitest';
import type { CommandContext } from '../../src/commands/context.js';
import type { ChunkmountError } from '../../src/errors.js';
import type { Reporter } from '../../src/report/reporter.js';

/** What starts worker threads has to come from the build: they are JavaScript files beside it. */
export async function built<Module>(module: string): Promise<Module> {
  const url = new URL(`../../build/${module}.js`, import.meta.url);
  if (!fs.existsSync(url)) throw new Error(`build/${module}.js is missing: build first (npm run build)`);
  return (await import(url.href)) as Module;
}

/** A directory that is gone after the test. */
export function temporaryDirectory(): string {
  const directory = fs.mkdtempSync(path.join(os.tmpdir(), 'chunkmount-restore-'));
  onTestFinished(() => fs.rmSync(directory, { recursive: true, force: true }));
  return directory;
}

/** A context that keeps what was said. */
export class RecordingContext implements CommandContext {
  readonly #output: Buffer[] = [];
  readonly messages: string[] = [];
  readonly controller = new AbortController();
  readonly signal: AbortSignal = this.controller.signal;
  readonly insisted: AbortSignal = new AbortController().signal;
  readonly exitWith = () => {};
  readonly stdout = new Writable({
    write: (data: Buffer, _encoding, callback) => {
      this.#output.push(Buffer.from(data));
      callback();
    },
  });
  readonly reporter: Reporter = {
    debug: () => {},
    notice: (message) => void this.messages.push(`notice: ${message}`),
    warn: (message) => void this.messages.push(`warn: ${message}`),
    progress: (label, total) => {
      let done = 0;
      return {
        advance: (amount) => {
          done += amount;
        },
        end: () => void this.messages.push(`progress: ${label} ${done} of ${total}`),
      };
    },
  };

  constructor(readonly json: boolean = false) {}

  get output(): Buffer {
    return Buffer.concat(this.#output);
  }

  get text(): string {
    return this.output.toString();
  }
}

/** The error of kind `kind` that the promise is rejected with. (The build has a class of its own, so no instanceof.) */
export async function errorOf(
  promise: Promise<unknown>,
  kind: ChunkmountError['kind'],
): Promise<ChunkmountError> {
  const error = await promise.then(
    () => undefined,
    (thrown: unknown) => thrown as ChunkmountError,
  );
  expect(error).toMatchObject({ name: 'ChunkmountError', kind });
  return error!;
}
