import * as fs from 'node:fs';
import * as os from 'node:os';
import * as path from 'node:path';
import { afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { ChunkmountError } from '../../src/errors.js';
import { run } from '../../src/host/exec.js';
import { Journal } from '../../src/session/journal.js';
import { undoAll } from '../../src/session/undo.js';
import { holdImages, holdUndo } from '../../src/snapshot/hold.js';
import { asNobody, NOBODY } from '../support/as-nobody.js';
import { makeImage, writePattern } from '../support/libvirt.js';
import { program, requireAll, root } from '../support/requirements.js';
import { RecordingReporter } from '../support/snapshot-session.js';

const MIB = 1024 * 1024;
const WRITE = { offset: 0, length: 4096, pattern: 7 };

let directory: string;
let journal: Journal;
const reporter = new RecordingReporter();

beforeAll(() =>
  requireAll(root, program('qemu-storage-daemon', 'qemu-system-common'), program('qemu-io', 'qemu-utils')),
);

beforeEach(() => {
  directory = fs.mkdtempSync(path.join(os.tmpdir(), 'cm-hold, '));
  journal = new Journal(path.join(directory, 'journal.jsonl'));
});

afterEach(async () => {
  await undoAll({ journal, reporter }, holdUndo, new Set());
  journal.close();
  fs.rmSync(directory, { recursive: true });
});

async function undo(): Promise<void> {
  expect(await undoAll({ journal, reporter }, holdUndo, new Set())).toEqual([]);
}

async function image(format: string): Promise<string> {
  const file = path.join(directory, `an 'image', \\ of.${format}`);
  await makeImage(file, format, MIB, 1);
  return file;
}

describe.each(['raw', 'qcow2', 'vmdk'])('a %s image', (format) => {
  it('cannot be written while it is held, and can be read', async () => {
    const file = await image(format);
    await holdImages({ images: [file], journal });
    await expect(writePattern(file, format, WRITE)).rejects.toThrow(/lock/);
    await run('qemu-io', ['-r', '-f', format, '-c', 'read -P 1 0 1M', file]);
    await undo();
    await writePattern(file, format, WRITE);
  });
});

describe('holding', () => {
  /** The least time that `work` takes, in milliseconds. */
  async function leastTime(work: () => Promise<unknown>, after: () => Promise<unknown>): Promise<number> {
    const times: number[] = [];
    for (let round = 0; round < 6; round++) {
      const started = performance.now();
      await work();
      times.push(performance.now() - started);
      await after();
    }
    return Math.min(...times);
  }

  it('is quick: it takes no more than a few starts of a program', async () => {
    const file = await image('raw');
    const start = await leastTime(
      () => run('qemu-storage-daemon', ['--version']),
      async () => {},
    );
    expect(await leastTime(() => holdImages({ images: [file], journal }), undo)).toBeLessThan(8 * start);
  });

  it('names the image that somebody writes', async () => {
    const free = await image('raw');
    const busy = path.join(directory, 'busy.raw');
    await makeImage(busy, 'raw', MIB);
    const writer = await writerOf(busy);
    try {
      const error = await holdImages({ images: [free, busy], journal }).catch((thrown: unknown) => thrown);
      expect(error).toBeInstanceOf(ChunkmountError);
      expect((error as ChunkmountError).message).toBe(`${busy} is being written by another program`);
      expect((error as ChunkmountError).hint).toContain('--vm=');
    } finally {
      process.kill(writer, 'SIGTERM');
    }
  });

  async function writerOf(file: string): Promise<number> {
    const pidFile = path.join(directory, 'writer.pid');
    const node = JSON.stringify({ driver: 'file', 'node-name': 'n', filename: file });
    const server = `addr.type=unix,addr.path=${path.join(directory, 'nbd').replaceAll(',', ',,')}`;
    const storage = [
      '--blockdev',
      node,
      '--nbd-server',
      server,
      '--export',
      'type=nbd,id=e,node-name=n,writable=on',
    ];
    await run('qemu-storage-daemon', ['--daemonize', '--pidfile', pidFile, ...storage]);
    return Number(fs.readFileSync(pidFile, 'utf8'));
  }

  it('a block device cannot be written while it is held', async () => {
    const { stdout } = await run('losetup', ['--find', '--show', await image('raw')]);
    const device = stdout.trim();
    try {
      await holdImages({ images: [device], journal });
      await expect(writePattern(device, 'raw', WRITE)).rejects.toThrow(/lock/);
      await undo();
      await writePattern(device, 'raw', WRITE);
    } finally {
      await run('losetup', ['--detach', device]);
    }
  });

  it('an ordinary user can hold an image that is not theirs', async (context) => {
    const file = await image('raw');
    fs.chmodSync(file, 0o444);
    fs.chownSync(directory, NOBODY, NOBODY);
    fs.chownSync(journal.file, NOBODY, NOBODY);
    await asNobody(context, async () => {
      await holdImages({ images: [file], journal });
      await expect(writePattern(file, 'raw', WRITE)).rejects.toThrow();
      expect(fs.statSync(`/proc/${holder()}`).uid).toBe(NOBODY);
      await undo();
    });
  });

  function holder(): number {
    return (journal.pending()[0]!.data as { holder: { pid: number } }).holder.pid;
  }

  it('an image may be held twice, by two sessions', async () => {
    const file = await image('raw');
    await holdImages({ images: [file, file], journal });
    await holdImages({ images: [file], journal });
    await undo();
  });

  it('no images: nothing is started', async () => {
    await holdImages({ images: [], journal });
    expect(journal.pending()).toEqual([]);
  });

  it('an image that does not exist is named', async () => {
    await expect(holdImages({ images: [path.join(directory, 'none')], journal })).rejects.toThrow(
      /none cannot be held/,
    );
  });

  it('is undone also when the holder died', async () => {
    await holdImages({ images: [await image('raw')], journal });
    process.kill(holder(), 'SIGKILL');
    await new Promise((resolve) => setTimeout(resolve, 100));
    await undo();
    expect(fs.readdirSync(directory).filter((file) => file.endsWith('.pid'))).toEqual([]);
  });

  it('a holder whose start was not recorded is found', async () => {
    const file = await image('raw');
    await holdImages({ images: [file], journal });
    const [entry] = journal.pending();
    const { pidFile, images } = entry!.data as { pidFile: string; images: string[] };
    await holdUndo.hold({ ...entry!, data: { pidFile, images }, done: false }, { journal, reporter });
    await writePattern(file, 'raw', WRITE);
  });
});
