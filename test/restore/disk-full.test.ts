import * as fs from 'node:fs';
import * as path from 'node:path';
import { beforeAll, expect, it, onTestFinished } from 'vitest';
import { run } from '../../src/host/exec.js';
import { build, program, requireAll, root } from '../support/requirements.js';
import { built, errorOf, RecordingContext, temporaryDirectory } from './built.js';
import { CHUNK, demoTree, MIB } from './demo-tree.js';

type Module = typeof import('../../src/commands/restore.js');
let runRestore: Module['runRestore'];

beforeAll(async () => {
  await requireAll(build, root, program('flock', 'util-linux'));
  ({ runRestore } = await built<Module>('commands/restore'));
});

/** A file system of one MiB, which is less than a demo tree takes. */
async function smallPlace(): Promise<string> {
  const directory = temporaryDirectory();
  await run('mount', ['-t', 'tmpfs', '-o', 'size=1m', 'tmpfs', directory]);
  onTestFinished(async () => void (await run('umount', [directory])));
  return directory;
}

// The image takes all the room, and the record of how far it came finds none: it must not be what the user hears of.
it('a restore that fills the file system says so, and goes on when there is room', async () => {
  const tree = demoTree();
  const directory = fs.realpathSync(await smallPlace());
  const to = path.join(directory, 'new.img');
  const options = { tree: tree.root, to, force: false, delta: false, keepGoing: false };
  const error = await errorOf(runRestore(options, new RecordingContext()), 'failed');
  expect(error.message).toMatch(/new\.img cannot be written at [0-9]+: ENOSPC/);
  expect(error.hint).toBe('make room and run the same command again: what has been restored is kept');
  expect(fs.readdirSync(directory).filter((name) => name.endsWith('.tmp'))).toEqual([]);
  await run('mount', ['-o', `remount,size=${4 * MIB}`, directory]);
  await runRestore(options, new RecordingContext());
  expect(fs.readFileSync(to).subarray(0, 10 * CHUNK)).toEqual(tree.content.subarray(0, 10 * CHUNK));
  expect(fs.readdirSync(directory)).toEqual(['new.img']);
});
