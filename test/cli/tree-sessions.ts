import * as fs from 'node:fs';
import * as path from 'node:path';
import { pathToFileURL } from 'node:url';
import { expect } from 'vitest';
import { type CliResult, rsyncCommand, rsyncReport, TestChunkmount } from '../support/chunkmount.js';
import { type EntryStat, parseStats, STAT_SCRIPT } from './tree-stats.js';

export const CHUNK = 4096;

const CLOCK = pathToFileURL(path.join(import.meta.dirname, 'fixtures/clock.mjs')).href;
/** Sessions that follow each other faster than this wait for the clock: see manifest-time.ts. */
const STEP_MS = 3_000;

/** One image, sessions of its tree with the same options, and a copy that rsync keeps. */
export class TreeSessions {
  readonly chunkmount = new TestChunkmount();
  readonly image = this.chunkmount.path('disk.raw');
  readonly tree = this.chunkmount.tree('demo');
  readonly copy = this.chunkmount.path('copy');
  #sessions = 0;

  constructor(private readonly options: readonly string[]) {}

  /** `chunkmount run`, or another command that begins a session, with a clock so far ahead that it need not wait. */
  async begin(command: readonly string[], options: readonly string[] = this.options): Promise<CliResult> {
    const env = { TEST_CLOCK: `+${STEP_MS * ++this.#sessions}`, NODE_OPTIONS: `--import=${CLOCK}` };
    const [verb = '', ...rest] = command;
    const given = [`--image=${this.image}`, '--name=demo', '--chunk-size=4K', ...options];
    const result = await this.chunkmount.run([verb, ...given, ...rest], env);
    expect(result).toMatchObject({ exitCode: 0 });
    return result;
  }

  /** What the tree of one session shows. */
  async look(options?: readonly string[]): Promise<Map<string, EntryStat>> {
    const { stdout } = await this.begin(['run', '--', 'sh', '-c', STAT_SCRIPT, 'sh', this.tree], options);
    return parseStats(stdout);
  }

  /** One session and an rsync of its tree. Returns the files that were sent, without those at the top. */
  async backup(...rsyncOptions: string[]): Promise<string[]> {
    const { stdout } = await this.begin([
      'run',
      '--',
      ...rsyncCommand(this.tree, this.copy, ...rsyncOptions),
    ]);
    return rsyncReport(stdout).files.filter((file) => file.includes('/'));
  }

  write(chunk: number, bytes: Uint8Array): void {
    const fd = fs.openSync(this.image, 'r+');
    fs.writeSync(fd, bytes, 0, bytes.length, chunk * CHUNK);
    fs.closeSync(fd);
  }

  close(): Promise<void> {
    return this.chunkmount.close();
  }
}

/** All files below a directory, sorted, with their content. */
export function filesBelow(directory: string): Map<string, Buffer> {
  const entries = fs.readdirSync(directory, { recursive: true, withFileTypes: true });
  const files = entries
    .filter((entry) => entry.isFile())
    .map((entry) => path.join(entry.parentPath, entry.name));
  return new Map(files.sort().map((file) => [path.relative(directory, file), fs.readFileSync(file)]));
}
