import * as fs from 'node:fs';
import * as path from 'node:path';
import * as v from 'valibot';
import { readIfExists, replaceFile } from '../host/durable.js';
import { identityOf, imageIdentity, isSameImage } from '../snapshot/image-identity.js';

const Schema = v.object({
  format: v.literal('chunkmount-define'),
  version: v.literal(1),
  /** Finished images: which disk of which backup, and the file that it became. */
  finished: v.array(
    v.object({ file: v.string(), source: v.string(), identity: imageIdentity, written: v.string() }),
  ),
});

type Content = v.InferOutput<typeof Schema>;

/** Changes when somebody writes to the file. */
function lastWritten(file: string): string {
  return String(fs.statSync(file, { bigint: true }).mtimeNs);
}

function parse(text: string | undefined): Content['finished'] {
  if (text === undefined) return [];
  try {
    return v.parse(Schema, JSON.parse(text)).finished;
  } catch {
    return [];
  }
}

/**
 * Which images of a tree are complete, while the others are still being restored: so that the same command, run again after an
 * interruption, neither takes them for somebody else's nor restores them again. A file beside the images.
 */
export class FinishedImages {
  #finished: Content['finished'];
  readonly #file: string;

  constructor(storage: string, name: string) {
    this.#file = path.join(storage, `.${name}.chunkmount-define.json`);
    this.#finished = parse(readIfExists(this.#file));
  }

  /** Whether `file` is what an earlier run made of `source` (see identifyDisk), and nobody has touched it since. */
  has(file: string, source: string): boolean {
    const one = this.#finished.find((candidate) => candidate.file === file && candidate.source === source);
    const identity = identityOf(file);
    if (one === undefined || identity === undefined) return false;
    return isSameImage(one.identity, identity) && one.written === lastWritten(file);
  }

  add(file: string, source: string): void {
    const identity = identityOf(file);
    if (identity === undefined) return;
    const others = this.#finished.filter((one) => one.file !== file);
    this.#finished = [...others, { file, source, identity, written: lastWritten(file) }];
    const content: Content = { format: 'chunkmount-define', version: 1, finished: this.#finished };
    replaceFile(this.#file, `${JSON.stringify(content)}\n`);
  }

  /** All is done, or left to the user. */
  remove(): void {
    fs.rmSync(this.#file, { force: true });
  }
}
