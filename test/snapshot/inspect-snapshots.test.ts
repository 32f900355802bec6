import * as fs from 'node:fs';
import * as os from 'node:os';
import * as path from 'node:path';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { ownIdentity } from '../../src/host/process-identity.js';
import { Journal } from '../../src/session/journal.js';
import { undoAll } from '../../src/session/undo.js';
import { holdImages, holdUndo } from '../../src/snapshot/hold.js';
import { checkSnapshots, inspectSnapshots } from '../../src/snapshot/inspect-snapshots.js';
import { PAUSE_KIND } from '../../src/snapshot/pause.js';
import { pausedProvider } from '../../src/snapshot/paused.js';
import { makeImage, type TestDomain, TestLibvirt } from '../support/libvirt.js';
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

describe('a VM that is to stand still', () => {
  const WRITE = { offset: 0, length: 65536, pattern: 0x22 };
  let libvirt: TestLibvirt;
  let domain: TestDomain;
  let session: SnapshotSession;
  let image: string;
  let count = 0;

  beforeAll(async () => {
    libvirt = await TestLibvirt.start();
  });

  beforeEach(async () => {
    count++;
    image = path.join(libvirt.directory, `${count}.qcow2`);
    await makeImage(image, 'qcow2', MIB, 0x11);
    domain = await libvirt.define(`vm${count}`, [{ target: 'vda', path: image, format: 'qcow2' }]);
    session = new SnapshotSession(libvirt.virsh, path.join(libvirt.directory, `session${count}`), 'i1');
  });

  afterEach(async () => {
    session.journal.close();
    await libvirt.remove(domain);
  });

  afterAll(() => libvirt?.close());

  const freeze = () => session.freeze(pausedProvider, domain.name);
  const state = async () => (await libvirt.virsh.state(domain.uuid)).state;
  const told = async () => (await inspectSnapshots(session.reopen())).lost.map(({ message }) => message);
  const written = () => [expect.stringContaining(`${image} was written while its VM was to stand still`)];

  /** Undoes all, and looks at what the VM does then. */
  async function expectUndone(then: string): Promise<void> {
    expect(await session.undo()).toEqual([]);
    expect(await state()).toBe(then);
  }

  it('is told when it was resumed, even if it wrote nothing', async () => {
    await freeze();
    expect(await inspectSnapshots(session.journal)).toEqual(WELL);
    await libvirt.virsh.resume(domain.uuid);
    expect(await told()).toEqual([expect.stringContaining('was resumed')]);
    await expectUndone('running');
  });

  it('is told when it was paused before, was resumed, and wrote', async () => {
    await libvirt.virsh.suspend(domain.uuid);
    await freeze();
    expect(await inspectSnapshots(session.journal)).toEqual(WELL);
    await libvirt.virsh.resume(domain.uuid);
    await libvirt.guestWrite(domain, 'vda', WRITE);
    await libvirt.virsh.suspend(domain.uuid);
    expect(await told()).toEqual(written());
    await expectUndone('paused');
  });

  it('is told when it was resumed, wrote, and was paused again', async () => {
    await freeze();
    await libvirt.virsh.resume(domain.uuid);
    await libvirt.guestWrite(domain, 'vda', WRITE);
    await libvirt.virsh.suspend(domain.uuid);
    expect(await told()).toEqual(written());
    await expectUndone('running');
  });

  it('is told when it was destroyed, started anew, and wrote; not before it wrote', async () => {
    await freeze();
    await libvirt.virsh.call('destroy', [domain.uuid]);
    expect(await told()).toEqual([]);
    await libvirt.virsh.call('start', [domain.uuid]);
    await libvirt.guestWrite(domain, 'vda', WRITE);
    expect(await told()).toEqual(written());
    await expectUndone('running');
  });

  it('need not be asked for when it wrote nothing', async () => {
    await freeze();
    await libvirt.stopDaemon();
    expect(await inspectSnapshots(session.journal)).toEqual(WELL);
    fs.utimesSync(image, new Date(), new Date());
    expect(await told()).toEqual(written());
    await libvirt.startDaemon();
    await expectUndone('running');
  });

  it('was paused by a chunkmount that noted no images', async () => {
    await freeze();
    const [entry] = session.journal.pending();
    const { images: _, marks: __, ...old } = entry!.data;
    const journal = new Journal(path.join(directory, 'journal.jsonl'));
    journal.done(journal.intend(PAUSE_KIND, old));
    expect(await inspectSnapshots(journal)).toEqual(WELL);
    await libvirt.virsh.resume(domain.uuid);
    const { lost } = await inspectSnapshots(journal);
    expect(lost.map(({ message }) => message)).toEqual([expect.stringContaining('was resumed')]);
    await libvirt.virsh.suspend(domain.uuid);
    expect(
      await undoAll({ journal, reporter: new RecordingReporter() }, pausedProvider.undo, new Set()),
    ).toEqual([]);
    expect(await state()).toBe('running');
    journal.close();
  });
});
