import * as fs from 'node:fs';
import * as os from 'node:os';
import * as path from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { ownIdentity } from '../../src/host/process-identity.js';
import { Journal } from '../../src/session/journal.js';
import { undoAll } from '../../src/session/undo.js';
import { holdImages, holdUndo } from '../../src/snapshot/hold.js';
import { checkSnapshots, inspectSnapshots } from '../../src/snapshot/inspect-snapshots.js';
import { PAUSE_KIND } from '../../src/snapshot/pause.js';
import { pausedProvider } from '../../src/snapshot/paused.js';
import { makeImage, TestLibvirt } from '../support/libvirt.js';
import { RecordingReporter, SnapshotSession } from '../support/snapshot-session.js';

const MIB = 1024 * 1024;
const WELL = { lost: [], unknown: [] };
let directory: string;

beforeEach(() => {
  directory = fs.mkdtempSync(path.join(os.tmpdir(), 'cm-inspect-'));
});

afterEach(() => fs.rmSync(directory, { recursive: true }));

describe('held images', () => {
  it('that stayed as they were are well; one that was written is named', async () => {
    const file = path.join(directory, 'a.raw');
    const other = path.join(directory, 'b.raw');
    for (const image of [file, other]) await makeImage(image, 'raw', MIB);
    const journal = new Journal(path.join(directory, 'journal.jsonl'));
    const reporter = new RecordingReporter();
    await holdImages({ images: [file, other], journal });
    fs.readFileSync(file);
    expect(await inspectSnapshots(journal)).toEqual(WELL);
    // No lock of QEMU's keeps another program from writing.
    fs.writeFileSync(file, 'overwritten');
    const { lost } = await inspectSnapshots(journal);
    expect(lost.map(({ message }) => message)).toEqual([
      `the frozen image ${file} was written by another program: what was copied from it is not a good backup`,
    ]);
    await undoAll({ journal, reporter }, holdUndo, new Set());
    journal.close();
  });

  it('are looked at although something else cannot be', async () => {
    const file = path.join(directory, 'a.raw');
    await makeImage(file, 'raw', MIB);
    const journal = new Journal(path.join(directory, 'journal.jsonl'));
    const domain = { uuid: '8f0c1d5a-0000-4000-8000-000000000001', name: 'gone' };
    const connect = `qemu:///system?socket=${path.join(directory, 'no-socket')}`;
    const pause = () => journal.done(journal.intend(PAUSE_KIND, { connect, domain, qemu: ownIdentity() }));
    // One before and one after it.
    pause();
    await holdImages({ images: [file], journal });
    pause();
    fs.writeFileSync(file, 'overwritten');
    const { lost, unknown } = await inspectSnapshots(journal);
    expect(lost.map(({ message }) => message)).toEqual([expect.stringContaining(`${file} was written`)]);
    expect(unknown.map(({ message }) => message)).toEqual(
      Array(2).fill(expect.stringMatching(/cannot be told: .*virsh/)),
    );
    await expect(checkSnapshots(journal)).rejects.toThrow(`${file} was written`);
    await undoAll({ journal, reporter: new RecordingReporter() }, holdUndo, new Set());
    await expect(checkSnapshots(journal)).rejects.toThrow('cannot be told');
    journal.close();
  });
});

it('a VM that was resumed although it was to stand still is told', async () => {
  const libvirt = await TestLibvirt.start();
  try {
    const image = path.join(libvirt.directory, 'a.raw');
    await makeImage(image, 'raw', MIB);
    const domain = await libvirt.define('paused', [{ target: 'vda', path: image, format: 'raw' }]);
    const session = new SnapshotSession(libvirt.virsh, path.join(libvirt.directory, 'session'), 'i1');
    await session.freeze(pausedProvider, 'paused');
    expect(await inspectSnapshots(session.journal)).toEqual(WELL);
    await libvirt.virsh.resume(domain.uuid);
    const { lost } = await inspectSnapshots(session.journal);
    expect(lost.map(({ message }) => message)).toEqual([expect.stringContaining('was resumed')]);
    expect(await session.undo()).toEqual([]);
  } finally {
    await libvirt.close();
  }
});
