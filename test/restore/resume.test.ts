import { spawn } from 'node:child_process';
import * as fs from 'node:fs';
import * as path from 'node:path';
import { beforeAll, describe, expect, it } from 'vitest';
import type { RestoreResult } from '../../src/restore/restore-disk.js';
import { build, program, requireAll } from '../support/requirements.js';
import { testBytes, writeTree } from '../support/trees.js';
import { built, errorOf, RecordingContext, temporaryDirectory } from './built.js';
import { KIB, MIB } from './demo-tree.js';

type Module = typeof import('../../src/commands/restore.js');
let runRestore: Module['runRestore'];

beforeAll(async () => {
  await requireAll(build, program('flock', 'util-linux'));
  ({ runRestore } = await built<Module>('commands/restore'));
});

const CHUNK = 128 * KIB;
/** Large enough to take a while. */
const SIZE = 256 * MIB;
const CHUNKS = SIZE / CHUNK;
const OPTIONS = { force: false, delta: false, keepGoing: false };
/** Zeros at the beginning and at the end: holes, where nothing wrong may be left. */
const ZEROS = 2 * MIB;
const content = testBytes(SIZE, 7, [
  [0, ZEROS],
  [SIZE - ZEROS, SIZE],
]);
const ZERO_CHUNKS = ZEROS / CHUNK;

interface Place {
  readonly root: string;
  readonly to: string;
  readonly part: string;
  readonly record: string;
}

function place(bytes: Uint8Array = content): Place {
  const directory = temporaryDirectory();
  const root = path.join(directory, 'demo');
  writeTree(root, { disks: [{ target: 'vda', content: bytes, chunkSize: CHUNK }] });
  const part = path.join(directory, '.new.img.chunkmount-part');
  return { root, to: path.join(directory, 'new.img'), part, record: `${part}.json` };
}

function allocated(file: string): number {
  return (fs.statSync(file, { throwIfNoEntry: false })?.blocks ?? 0) * 512;
}

function reached(record: string): number {
  if (!fs.existsSync(record)) return 0;
  return (JSON.parse(fs.readFileSync(record, 'utf8')) as { reached: number }).reached;
}

/** Waits until it is so, looking all the time. Throws when it takes a minute. */
async function until(what: string, condition: () => boolean): Promise<void> {
  const deadline = Date.now() + 60_000;
  while (!condition()) {
    if (Date.now() > deadline) throw new Error(`waited a minute until ${what}`);
    await new Promise((resolve) => setImmediate(resolve));
  }
}

/** For --import: a thread that is to open a chunk of the second half stays there. */
const STOPS_HALF_WAY = `
  import fs from 'node:fs';
  import { syncBuiltinESMExports } from 'node:module';
  const { openSync } = fs;
  fs.openSync = (file, ...more) => {
    const name = /\\/([0-9a-f]{8})$/.exec(file)?.[1];
    if (parseInt(name, 16) >= ${CHUNKS / 2}) Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0);
    return openSync(file, ...more);
  };
  syncBuiltinESMExports();`;

/** Restores in another process, which is killed when about half of the disk is there, and recorded. */
async function restoreAndKill({ root, to, part, record }: Place): Promise<void> {
  const script = `
    const progress = () => ({ advance() {}, end() {} });
    const reporter = { debug() {}, notice() {}, warn() {}, progress };
    const { signal } = new AbortController();
    const options = ${JSON.stringify({ ...OPTIONS, tree: root, to })};
    import(${JSON.stringify(new URL('../../build/commands/restore.js', import.meta.url))}).then(({ runRestore }) =>
      runRestore(options, { reporter, stdout: process.stdout, json: false, signal, insisted: signal }));`;
  const preload = `--import=data:text/javascript,${encodeURIComponent(STOPS_HALF_WAY)}`;
  const child = spawn(process.execPath, [preload, '--eval', script], {
    stdio: ['ignore', 'ignore', 'inherit'],
  });
  const ended = new Promise<NodeJS.Signals | null>((resolve) =>
    child.once('exit', (_, signal) => resolve(signal)),
  );
  await until('half is recorded', () => reached(record) >= CHUNKS / 2 || child.exitCode !== null);
  child.kill('SIGKILL');
  expect(await ended).toBe('SIGKILL');
  expect(allocated(part)).toBeGreaterThan(SIZE / 4);
  expect(fs.existsSync(to)).toBe(false);
  expect(reached(record)).toBeLessThan(CHUNKS);
}

async function restore({ root, to }: Place): Promise<{ result: RestoreResult; messages: string[] }> {
  const context = new RecordingContext(true);
  await runRestore({ ...OPTIONS, tree: root, to }, context);
  const { disks } = JSON.parse(context.text) as { disks: [RestoreResult] };
  return { result: disks[0], messages: context.messages };
}

function expectRestored({ to, part, record }: Place, expected: Uint8Array = content): void {
  expect(fs.readFileSync(to).equals(expected)).toBe(true);
  expect([part, record].filter((file) => fs.existsSync(file))).toEqual([]);
}

describe('a restore that was killed', () => {
  it('goes on with what is there', async () => {
    const here = place();
    await restoreAndKill(here);
    const { result, messages } = await restore(here);
    expect(result.unchanged).toBeGreaterThan(0);
    // Those at the beginning were found there, those at the end are holes.
    expect(result.zero).toBe(ZERO_CHUNKS);
    expect(result.unchanged + result.written + result.zero).toBe(CHUNKS);
    expect(allocated(here.to)).toBeLessThanOrEqual(SIZE - 2 * ZEROS + MIB);
    expect(messages[0]).toMatch(
      /^notice: going on with an interrupted restore: the first [0-9]+ % are checked/,
    );
    expectRestored(here);
  });

  it('trusts nothing that is there', async () => {
    const here = place();
    await restoreAndKill(here);
    const before = reached(here.record);
    // As after a power cut: blocks that never came to the disk, in front of what the record says and behind it.
    const fd = fs.openSync(here.part, 'r+');
    fs.writeSync(fd, Buffer.from('rubbish'), 0, 7, MIB);
    fs.writeSync(fd, Buffer.alloc(CHUNK), 0, CHUNK, 2 * ZEROS);
    fs.writeSync(fd, Buffer.from('rubbish'), 0, 7, SIZE - 7);
    fs.closeSync(fd);
    const { result } = await restore(here);
    expect(result.written).toBeGreaterThanOrEqual(CHUNKS - ZERO_CHUNKS - before + 2);
    expectRestored(here);
  });

  it('begins again when the backup is another one', async () => {
    const here = place();
    await restoreAndKill(here);
    const other = testBytes(10 * CHUNK + 5, 8, [[CHUNK, 2 * CHUNK]]);
    fs.rmSync(here.root, { recursive: true });
    writeTree(here.root, { disks: [{ target: 'vda', content: other, chunkSize: CHUNK }] });
    const { result, messages } = await restore(here);
    expect(result).toMatchObject({ unchanged: 0, written: 10, zero: 1 });
    expect(messages[0]).toBe(
      `notice: an unfinished restore of another backup to ${fs.realpathSync(here.to)} is discarded`,
    );
    expectRestored(here, other);
  });

  it('begins again when the record is lost or damaged', async () => {
    const here = place();
    await restoreAndKill(here);
    fs.writeFileSync(here.record, '{"format": "chunkmount-restore", "reached": -1');
    const { result } = await restore(here);
    expect(result).toMatchObject({ unchanged: 0, written: CHUNKS - 2 * ZERO_CHUNKS });
    expectRestored(here);
  });
});

it('a conversion that was killed leaves nothing behind when the image is then restored as raw', async () => {
  const { root, to, part } = place(testBytes(MIB, 1));
  fs.writeFileSync(`${part}.qcow2`, 'half an image');
  await runRestore({ ...OPTIONS, tree: root, to }, new RecordingContext());
  expect(fs.readdirSync(path.dirname(to)).sort()).toEqual(['demo', 'new.img']);
});

describe('a restore that the user stopped', () => {
  it('says that it can go on, and does', async () => {
    const here = place();
    const context = new RecordingContext();
    const restoring = runRestore({ ...OPTIONS, tree: here.root, to: here.to }, context);
    const stopped = errorOf(restoring, 'failed');
    await until('a quarter is restored', () => allocated(here.part) > SIZE / 4);
    context.controller.abort();
    const error = await stopped;
    expect([error.message, error.hint]).toEqual([
      'the restore of vda was interrupted',
      'run the same command again to go on',
    ]);
    expect(context.messages.at(-1)).toContain(
      `is kept in ${fs.realpathSync(here.part)}: the same command goes on from there`,
    );
    expect(fs.existsSync(here.to)).toBe(false);
    const { result } = await restore(here);
    expect(result.unchanged).toBeGreaterThan(CHUNKS / 8);
    expectRestored(here);
  });

  it('leaves a target that is changed in place for --delta', async () => {
    const here = place();
    fs.writeFileSync(here.to, '');
    const context = new RecordingContext();
    const options = { ...OPTIONS, tree: here.root, to: here.to, delta: true };
    const stopped = errorOf(runRestore(options, context), 'failed');
    await until('a quarter is restored', () => allocated(here.to) > SIZE / 4);
    context.controller.abort();
    expect((await stopped).hint).toBe('go on with --delta');
    await runRestore(options, new RecordingContext());
    expectRestored(here);
  });

  it('ends at once when it is stopped before it began', async () => {
    const here = place(testBytes(5 * CHUNK, 1));
    const context = new RecordingContext();
    context.controller.abort();
    await errorOf(runRestore({ ...OPTIONS, tree: here.root, to: here.to }, context), 'failed');
    expect(fs.existsSync(here.to)).toBe(false);
  });
});
