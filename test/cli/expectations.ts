import * as fs from 'node:fs';
import * as path from 'node:path';
import { expect } from 'vitest';
import { listMounts } from '../../src/host/mountinfo.js';
import { findProcesses } from '../../src/host/process-list.js';
import type { CliResult, TestChunkmount } from '../support/chunkmount.js';

export interface ToldError {
  /** Without `chunkmount: error: `. */
  readonly message: string;
  readonly hint: string;
}

/**
 * What a command that failed must have done: ended with that code, printed no result, and said one sentence and, on a
 * second line, what to do. Notices may come before.
 */
export function expectError(result: CliResult, exitCode: number): ToldError {
  expect(result, result.stderr).toMatchObject({ exitCode, stdout: '' });
  return toldError(result.stderr);
}

/** The error at the end of stderr. */
export function toldError(stderr: string): ToldError {
  const said = /(?:^|\n)chunkmount: error: ([^\n]*[^\n.])\n {2}(\S[^\n]*[^\n.])\n$/.exec(stderr);
  expect(said, `no sentence and hint: ${stderr}`).not.toBeNull();
  const [, message = '', hint = ''] = said!;
  for (const text of [message, hint]) expect(text).not.toMatch(/undefined|\[object|\bnull\b|Error:/);
  return { message, hint };
}

function filesIn(directory: string): string[] {
  return fs.existsSync(directory) ? fs.readdirSync(directory) : [];
}

/** What sessions leave behind when they are not ended: should be empty. `images` is where overlays would be. */
export function traces(chunkmount: TestChunkmount, images: string = chunkmount.directory): string[] {
  const { directory, stateDirectory, backupDirectory } = chunkmount;
  const processes = findProcesses(
    ([program = '', ...args]) =>
      !path.basename(program).startsWith('qemu-system') && args.some((arg) => arg.includes(directory)),
  );
  return [
    ...filesIn(path.join(stateDirectory, 'sessions')).map((name) => `session ${name}`),
    ...filesIn(path.join(stateDirectory, 'locks')).flatMap((name) =>
      name.endsWith('.json') ? [`lock ${name}`] : [],
    ),
    ...filesIn(backupDirectory).map((name) => `mountpoint ${name}`),
    ...filesIn(images).flatMap((name) => (name.includes('.cm-') ? [`overlay ${name}`] : [])),
    ...listMounts().flatMap(({ mountpoint }) =>
      mountpoint.startsWith(`${directory}/state`) || mountpoint.startsWith(`${directory}/backup`)
        ? [`mount ${mountpoint}`]
        : [],
    ),
    ...processes.map(
      ({ pid }) => `process ${fs.readFileSync(`/proc/${pid}/cmdline`, 'utf8').replaceAll('\0', ' ')}`,
    ),
  ];
}

/** Waits until `condition` holds, at most a minute: the machine may be busy. */
export async function eventually(condition: () => boolean | Promise<boolean>): Promise<void> {
  const deadline = Date.now() + 60_000;
  while (!(await condition())) {
    if (Date.now() > deadline) throw new Error('waited a minute in vain');
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}
