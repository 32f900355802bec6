import * as fs from 'node:fs';
import * as path from 'node:path';
import { Worker } from 'node:worker_threads';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { run } from '../../src/host/exec.js';
import { loadDomain } from '../../src/libvirt/load-domain.js';
import { inspectSnapshots } from '../../src/snapshot/inspect-snapshots.js';
import { pullProvider } from '../../src/snapshot/pull/provider.js';
import { reflinkProvider } from '../../src/snapshot/reflink/provider.js';
import { shareBlocks } from '../../src/snapshot/reflink/share-blocks.js';
import { REFLINK_KINDS, TestFileSystem } from '../support/file-systems.js';
import { whileOpenForWriting } from '../support/held-open.js';
import {
  eventually,
  hasPattern,
  makeTwoDisks,
  type TestDisk,
  type TestDomain,
  TestLibvirt,
} from '../support/libvirt.js';
import { SnapshotSession } from '../support/snapshot-session.js';

let fileSystem: TestFileSystem;
let libvirt: TestLibvirt;
let directory: string;
let disks: TestDisk[];
let domain: TestDomain;
let session: SnapshotSession;
let count = 0;

beforeAll(async () => {
  fileSystem = await TestFileSystem.make('xfs');
  libvirt = await TestLibvirt.start();
  directory = path.join(fileSystem.directory, 'images');
  fs.mkdirSync(directory);
  disks = await makeTwoDisks(directory);
  domain = await libvirt.define('crash', disks);
});

afterAll(async () => {
  await libvirt?.close();
  await fileSystem?.close();
});

beforeEach(() => {
  count++;
  session = new SnapshotSession(libvirt.virsh, path.join(libvirt.directory, `session-${count}`), `c${count}`);
});

afterEach(async () => {
  await session.undo();
});

async function expectRestored(): Promise<void> {
  expect(session.journal.pending()).toEqual([]);
  expect(fs.readdirSync(directory).sort()).toEqual(['vda.qcow2', 'vdb.img']);
  expect((await libvirt.virsh.state(domain.uuid)).state).toBe('running');
}

/** Of each disk: intended, made, whole; of the pause: intended, done, undone. One more than that dies no more. */
const RECORDS = Array.from({ length: 10 }, (_, index) => index + 1);

describe('killed', () => {
  it.each(RECORDS)('while freezing, before and after journal record %i', async (records) => {
    for (const before of [false, true]) {
      const death = { records, before };
      expect(await session.dyingFreeze(reflinkProvider, domain.name, death)).toBe(records <= 9);
      expect(await session.undo()).toEqual([]);
      await expectRestored();
    }
  });

  it.each([1, 2])('while undoing, after journal record %i', async (records) => {
    await session.freeze(reflinkProvider, domain.name);
    expect(await session.dyingUndo({ records })).toBe(true);
    expect(await session.undo()).toEqual([]);
    await expectRestored();
  });
});

it('killed before it made the file, whose name somebody else then takes: that one stays', async () => {
  expect(await session.dyingFreeze(reflinkProvider, domain.name, { records: 1 }, { targets: ['vdb'] })).toBe(
    true,
  );
  const other = path.join(directory, `vdb.cm-${session.id}.clone`);
  fs.writeFileSync(other, 'mine');
  expect(await session.undo()).toEqual([]);
  expect(session.reporter.messages.join('\n')).toContain(`warn: ${other} is not the clone`);
  expect(fs.readFileSync(other, 'utf8')).toBe('mine');
  fs.rmSync(other);
});

it('a VM that a job works on is refused', async () => {
  const { virsh } = libvirt;
  const loaded = await loadDomain(virsh, domain.name);
  await session.freeze(pullProvider, domain.name);
  expect(await reflinkProvider.refusal({ virsh, domain: loaded }, loaded.disks[0]!)).toMatch(
    /disk vda: a job .* works on crash/,
  );
  expect(await session.undo()).toEqual([]);
  await expectRestored();
});

describe('a clone', () => {
  function cloneOf(target: string): string {
    const name = fs.readdirSync(directory).find((file) => file.startsWith(`${target}.cm-`));
    return path.join(directory, name!);
  }

  it('is told when somebody wrote or removed it, and stays if it was written', async () => {
    await session.freeze(reflinkProvider, domain.name);
    expect(await inspectSnapshots(session.journal)).toEqual({ lost: [], unknown: [] });
    const written = cloneOf('vda');
    fs.writeFileSync(written, 'x', { flag: 'r+' });
    fs.rmSync(cloneOf('vdb'));
    const { lost } = await inspectSnapshots(session.journal);
    const told = lost.map(({ message }) => message);
    expect(told.sort()).toEqual([
      expect.stringMatching(/clone .*vda\.cm-c\d+\.clone of disk vda was written/),
      expect.stringMatching(/clone .*vdb\.cm-c\d+\.clone of disk vdb is gone/),
    ]);
    expect(await session.undo()).toEqual([]);
    expect(session.reporter.messages.join('\n')).toMatch(/warn: the clone .*vda.* was written .* left alone/);
    expect(fs.readFileSync(written, 'latin1')[0]).toBe('x');
    fs.rmSync(written);
    await expectRestored();
  });

  it("is left alone when its name is somebody else's", async () => {
    await session.freeze(reflinkProvider, domain.name, { targets: ['vdb'] });
    const clone = cloneOf('vdb');
    fs.renameSync(clone, `${clone}.old`);
    fs.writeFileSync(clone, 'mine');
    expect(await session.undo()).toEqual([]);
    expect(session.reporter.messages.join('\n')).toContain(`warn: ${clone} is not the clone`);
    expect(fs.readFileSync(clone, 'utf8')).toBe('mine');
    for (const file of [clone, `${clone}.old`]) fs.rmSync(file);
  });

  it('that another VM has as its disk stays until that is over', async () => {
    await session.freeze(reflinkProvider, domain.name, { targets: ['vdb'] });
    const clone = cloneOf('vdb');
    await whileOpenForWriting({ path: clone, format: 'raw' }, async () => {
      expect((await session.undo()).map(({ message }) => message)).toEqual([
        expect.stringContaining('another program has it open for writing'),
      ]);
      expect(fs.existsSync(clone)).toBe(true);
    });
    expect(await session.undo()).toEqual([]);
    await expectRestored();
  });

  it('of a qcow2 has what QEMU had only in its memory, and is whole', async () => {
    const write = async (offset: number, pattern: number) => {
      const device = '/machine/peripheral/virtio-disk0/virtio-backend';
      const hmp = `qemu-io -d ${device} "write -P ${pattern} ${offset} 65536"`;
      await libvirt.virsh.call('qemu-monitor-command', ['--domain', domain.uuid, '--hmp', '--cmd', hmp]);
    };
    // An internal snapshot: all that is written afterwards needs new clusters, and so new tables.
    await libvirt.virsh.call('destroy', ['--domain', domain.uuid]);
    await run('qemu-img', ['snapshot', '-c', 'one', disks[0]!.path]);
    await libvirt.startDomain(domain.uuid);
    for (let piece = 0; piece < 8; piece++) await write(piece * 131072, 0x40 + piece);
    const { disks: frozen } = await session.freeze(reflinkProvider, domain.name, { targets: ['vda'] });
    await write(0, 0x99);
    const { path: clone } = frozen[0]!.image;
    await run('qemu-img', ['check', '-q', '-f', 'qcow2', clone]);
    for (let piece = 0; piece < 8; piece++) {
      const extent = { offset: piece * 131072, length: 65536, pattern: 0x40 + piece };
      expect(await hasPattern(clone, 'qcow2', extent)).toBe(true);
    }
    expect(await session.undo()).toEqual([]);
    await expectRestored();
  });

  it('of a disk that is off is made while nobody can start the VM', async () => {
    await libvirt.virsh.call('destroy', ['--domain', domain.uuid]);
    expect(await session.freeze(reflinkProvider, domain.name)).toMatchObject({ consistency: 'offline' });
    await libvirt.startDomain(domain.uuid);
    expect(await session.undo()).toEqual([]);
    await expectRestored();
  });
});

describe.each(REFLINK_KINDS)('a big file on %s that is being written', (kind) => {
  const SLOTS = 2048;
  const STEP = 4096;

  /** Writes 1, 2, 3, … into one slot after the other. */
  const WRITER = `const fs = require('node:fs');
    const { file, step, slots, flag } = require('node:worker_threads').workerData;
    const fd = fs.openSync(file, 'r+');
    const number = Buffer.alloc(8);
    for (let n = 1; Atomics.load(flag, 0) === 0; n++) {
      number.writeDoubleLE(n);
      fs.writeSync(fd, number, 0, 8, (n % slots) * step);
      Atomics.store(flag, 1, n);
    }`;

  it('is cloned as it was at one moment', async () => {
    const own = await TestFileSystem.make(kind);
    /** Whether to end; the last number written. */
    const flag = new Int32Array(new SharedArrayBuffer(8));
    try {
      const file = path.join(own.directory, 'image');
      fs.writeFileSync(file, Buffer.alloc(SLOTS * STEP, 1));
      const worker = new Worker(WRITER, { eval: true, workerData: { file, step: STEP, slots: SLOTS, flag } });
      const seen: number[] = [];
      for (let clone = 0; clone < 12; clone++) {
        // More than once around, in the end.
        await eventually(async () => Atomics.load(flag, 1) > Math.max((clone * SLOTS) / 8, seen.at(-1) ?? 0));
        const source = fs.openSync(file, 'r');
        const target = fs.openSync(`${file}.${clone}`, 'wx+');
        await shareBlocks(source, target);
        fs.closeSync(source);
        fs.closeSync(target);
        const bytes = fs.readFileSync(`${file}.${clone}`);
        const numbers = Array.from({ length: SLOTS }, (_, slot) => bytes.readDoubleLE(slot * STEP));
        const last = Math.max(...numbers.filter(Number.isInteger));
        // Each slot has the last number that went there, and no other.
        for (let n = Math.max(1, last - SLOTS + 1); n <= last; n++) expect(numbers[n % SLOTS]).toBe(n);
        seen.push(last);
      }
      const exit = new Promise((resolve) => worker.once('exit', resolve));
      Atomics.store(flag, 0, 1);
      await exit;
      expect(new Set(seen).size).toBe(12);
      expect(seen.at(-1)).toBeGreaterThan(SLOTS);
    } finally {
      Atomics.store(flag, 0, 1);
      await own.close();
    }
  });
});
