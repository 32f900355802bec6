import { type ChildProcess, spawn } from 'node:child_process';
import { getEventListeners } from 'node:events';
import * as fs from 'node:fs';
import * as path from 'node:path';
import { Writable } from 'node:stream';
import { setTimeout as sleep } from 'node:timers/promises';
import { beforeAll, describe, expect, it, onTestFinished } from 'vitest';
import { run } from '../../src/host/exec.js';
import { restoreToStream } from '../../src/restore/restore-stream.js';
import { Tree } from '../../src/restore/tree.js';
import { CLI } from '../support/chunkmount.js';
import { build, requireAll } from '../support/requirements.js';
import { chunkFile, writeTree, xxh64 } from '../support/trees.js';
import { RecordingContext, temporaryDirectory } from './built.js';
import { demoTree, editManifest, KIB, MIB } from './demo-tree.js';

beforeAll(() => requireAll(build));

const CHUNK = 16 * MIB;
/** 2 TiB: it takes minutes to write them, even to where nothing is kept. */
const CHUNKS = 128 * KIB;

/** A tree of zeros that has no chunk files. */
function sparseTree(directory: string): string {
  const root = path.join(directory, 'demo');
  const zeros = Buffer.alloc(CHUNK);
  writeTree(root, { disks: [{ target: 'vda', content: zeros, chunkSize: CHUNK, look: 'skip' }] });
  editManifest(root, (manifest) => {
    Object.assign((manifest.disks as object[])[0]!, { size: CHUNK * CHUNKS, chunkCount: CHUNKS });
  });
  const hash = xxh64(zeros);
  const lines = Array.from({ length: CHUNKS }, (_, index) => `#${hash} ${chunkFile('vda', index)}\n`);
  fs.writeFileSync(path.join(root, 'vda.xxh64'), lines.join(''));
  return root;
}

/** How many bytes a process has written. */
function written({ pid }: ChildProcess): number {
  return Number(/^wchar: (\d+)$/m.exec(fs.readFileSync(`/proc/${pid}/io`, 'utf8'))![1]);
}

/** `chunkmount restore --to=-` to what is open as `output`; killed after the test at the latest. */
function restore(root: string, output: number): ChildProcess {
  const child = spawn(process.execPath, [CLI, 'restore', root, '--to=-'], {
    stdio: ['ignore', output, 'pipe'],
  });
  onTestFinished(() => void child.kill('SIGKILL'));
  return child;
}

async function untilWritten(child: ChildProcess, bytes: number): Promise<void> {
  while (written(child) < bytes) await sleep(10);
}

/** Ends it with SIGTERM. It has 30 s: the whole would take minutes. */
async function terminated(child: ChildProcess): Promise<{ ended: unknown; said: string }> {
  let said = '';
  child.stderr!.on('data', (data) => {
    said += data;
  });
  const closed = new Promise((resolve) => child.once('close', resolve));
  child.kill('SIGTERM');
  const ended = await Promise.race([closed, sleep(30_000, 'not at all', { ref: false })]);
  return { ended, said };
}

const INTERRUPTED = /error: the restore of vda was interrupted\n {2}what has been written is the beginning/;

describe('restore to standard output is ended by a signal', () => {
  it('when that is a file or a device', async () => {
    const root = sparseTree(temporaryDirectory());
    const output = fs.openSync('/dev/null', 'w');
    const child = restore(root, output);
    fs.closeSync(output);
    await untilWritten(child, 64 * MIB);
    const { ended, said } = await terminated(child);
    expect(ended, said).toBe(128 + 15);
    expect(said).toMatch(INTERRUPTED);
  });

  it('when that is a pipe whose reader has stopped', async () => {
    const directory = temporaryDirectory();
    const root = sparseTree(directory);
    const pipe = path.join(directory, 'pipe');
    await run('mkfifo', [pipe]);
    // For both: there is a reader, which never reads.
    const output = fs.openSync(pipe, 'r+');
    onTestFinished(() => fs.closeSync(output));
    const child = restore(root, output);
    await untilWritten(child, 64 * KIB);
    const { ended, said } = await terminated(child);
    expect(ended, said).toBe(128 + 15);
    expect(said).toMatch(INTERRUPTED);
  });
});

describe('restore to standard output that takes no more says so once', () => {
  /** What it says, and its exit code. */
  async function told(child: ChildProcess): Promise<{ exitCode: unknown; said: string }> {
    let said = '';
    child.stderr!.on('data', (data) => {
      said += data;
    });
    return { exitCode: await new Promise((resolve) => child.once('close', resolve)), said };
  }

  it('when whoever reads it has closed it', async () => {
    const root = sparseTree(temporaryDirectory());
    const child = spawn(process.execPath, [CLI, 'restore', root, '--to=-'], {
      stdio: ['ignore', 'pipe', 'pipe'],
    });
    onTestFinished(() => void child.kill('SIGKILL'));
    child.stdout!.once('data', () => child.stdout!.destroy());
    const { exitCode, said } = await told(child);
    expect({ exitCode, said }).toEqual({
      exitCode: 1,
      said: expect.stringMatching(
        /^chunkmount: error: whoever reads the output has closed it before the end of the disk\n {2}what was written is the beginning [^\n]*\n$/,
      ),
    });
  });

  it('when it is full', async () => {
    const { root } = demoTree();
    const output = fs.openSync('/dev/full', 'w');
    const child = restore(root, output);
    fs.closeSync(output);
    expect(await told(child)).toEqual({
      exitCode: 1,
      said: 'chunkmount: error: the output cannot be written: ENOSPC\n  make room where it goes\n',
    });
  });
});

it('restore to standard output listens to one signal at a time, however many chunks there are', async () => {
  const { root, content } = demoTree();
  const { signal, reporter } = new RecordingContext();
  const listeners: number[] = [];
  const parts: Buffer[] = [];
  const stream = new Writable({
    write: (data: Buffer, _, done) => {
      parts.push(Buffer.from(data));
      listeners.push(getEventListeners(signal, 'abort').length);
      done();
    },
  });
  const tree = Tree.open(root);
  await restoreToStream(tree, 'vda', stream, { signal, reporter, keepGoing: false });
  tree.close();
  expect(Buffer.concat(parts).equals(content)).toBe(true);
  expect(new Set(listeners)).toEqual(new Set([1]));
  expect(getEventListeners(signal, 'abort')).toEqual([]);
});
