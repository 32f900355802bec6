import * as fs from 'node:fs';
import * as path from 'node:path';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { run } from '../../src/host/exec.js';
import { isAlive } from '../../src/host/process-identity.js';
import { loadDomain } from '../../src/libvirt/load-domain.js';
import { type FreezeDomainRequest, freezeDomain } from '../../src/snapshot/freeze-domain.js';
import { prepareMemoryFile } from '../../src/snapshot/memory.js';
import {
  hasPattern,
  makeTwoDisks,
  signalWhenThere,
  type TestDisk,
  type TestDomain,
  TestLibvirt,
} from '../support/libvirt.js';
import { SnapshotSession } from '../support/snapshot-session.js';

const MIB = 1024 * 1024;
const BEFORE = { offset: 0, length: 4 * MIB, pattern: 0x11 };
const WRITTEN = { offset: MIB, length: 65536, pattern: 0x22 };

let libvirt: TestLibvirt;
let count = 0;
let directory: string;
let disks: TestDisk[];
let domain: TestDomain;
let session: SnapshotSession;
const path0 = process.env.PATH;

beforeAll(async () => {
  libvirt = await TestLibvirt.start();
});

afterAll(() => libvirt?.close());

beforeEach(async () => {
  count++;
  directory = path.join(libvirt.directory, `images-${count}`);
  fs.mkdirSync(directory);
  disks = await makeTwoDisks(directory, { pattern: BEFORE.pattern });
  domain = await libvirt.define(`freeze-${count}`, disks);
  session = new SnapshotSession(libvirt.virsh, path.join(libvirt.directory, `session-${count}`), `f${count}`);
});

afterEach(async () => {
  process.env.PATH = path0;
  await session.undo();
  await libvirt.remove(domain);
});

async function freeze(more: Partial<FreezeDomainRequest> = {}) {
  const { virsh, journal, reporter, id } = session;
  return freezeDomain({
    virsh,
    domain: await loadDomain(virsh, domain.name),
    exclude: [],
    snapshot: 'auto',
    sessionId: id,
    options: { quiesce: 'no' },
    journal,
    reporter,
    ...more,
  });
}

const state = async () => (await libvirt.virsh.state(domain.uuid)).state;
const pathsNow = async () => (await loadDomain(libvirt.virsh, domain.name)).disks.map((disk) => disk.path);

async function expectMerged(): Promise<void> {
  expect(await session.undo()).toEqual([]);
  expect(fs.readdirSync(directory).sort()).toEqual(['vda.qcow2', 'vdb.img']);
  expect(await pathsNow()).toEqual(disks.map((disk) => disk.path));
}

/** Puts a script first on PATH that looks at virsh's arguments before the real one gets them. */
function virshThrough(script: string): void {
  const bin = path.join(libvirt.directory, `bin-${count}`);
  fs.mkdirSync(bin);
  fs.writeFileSync(path.join(bin, 'virsh'), `#!/bin/bash\nPATH='${path0}'\n${script}\nexec virsh "$@"\n`, {
    mode: 0o755,
  });
  process.env.PATH = `${bin}:${path0}`;
}

/** A guest that shuts down when it is asked to. */
const OBEDIENT = 'set -- $(printf "%s " "$@" | sed s/shutdown/destroy/)';

describe('a running VM', () => {
  it('is frozen, in the order of its XML, with bus and kind of each disk', async () => {
    const snapshot = await freeze();
    expect(snapshot.consistency).toBe('crash');
    expect(snapshot.disks.map(({ target, bus, kind }) => [target, bus, kind])).toEqual([
      ['vda', 'virtio', 'overlay'],
      ['vdb', 'virtio', 'overlay'],
    ]);
    await expectMerged();
  });

  it('paused until the end, when no snapshot is wanted', async () => {
    const snapshot = await freeze({ snapshot: 'none', pause: true });
    expect(snapshot.disks.map(({ kind, image }) => [kind, image.inUse])).toEqual([
      ['none', true],
      ['none', true],
    ]);
    expect(await state()).toBe('paused');
    await expectMerged();
    expect(await state()).toBe('running');
  });

  it('quiesce without an agent: tried and told, or an error and nothing done', async () => {
    const snapshot = await freeze({ options: { quiesce: 'try' } });
    expect(snapshot.consistency).toBe('crash');
    expect(session.reporter.messages.join('\n')).toMatch(
      /warn: the file systems of freeze-\d+ cannot be frozen: .*agent/,
    );
    await expectMerged();
    await expect(freeze({ options: { quiesce: 'require' } })).rejects.toMatchObject({
      message: expect.stringContaining('cannot be frozen'),
      hint: expect.stringContaining('--quiesce=try'),
    });
    expect(session.journal.pending()).toEqual([]);
  });
});

describe('--state', () => {
  it('memory and disks of one moment give the running VM back', async () => {
    const memoryFile = path.join(libvirt.directory, `state-${count}`);
    const snapshot = await freeze({ options: { quiesce: 'no', memoryFile } });
    expect(snapshot.consistency).toBe('memory');
    expect(await state()).toBe('running');
    await libvirt.guestWrite(domain, 'vda', WRITTEN);
    const copies = new Map<string, string>();
    for (const { target, image } of snapshot.disks) {
      expect(await hasPattern(image.path, image.format, BEFORE)).toBe(true);
      const copy = path.join(libvirt.directory, `copy-${count}-${target}`);
      await run('cp', [image.path, copy]);
      copies.set(image.path, copy);
    }
    const savedState = `${memoryFile}.copy`;
    fs.copyFileSync(memoryFile, savedState);
    await expectMerged();
    expect(fs.existsSync(memoryFile)).toBe(false);

    await libvirt.remove(domain);
    let xml = await libvirt.virsh.call('save-image-dumpxml', ['--file', savedState]);
    for (const [from, to] of copies) xml = xml.replaceAll(from, to);
    const xmlFile = path.join(libvirt.directory, `restored-${count}.xml`);
    fs.writeFileSync(xmlFile, xml);
    await libvirt.virsh.call('restore', ['--file', savedState, '--xml', xmlFile, '--running']);
    domain = await libvirt.virsh.find(domain.name);
    expect(await state()).toBe('running');
    expect(await pathsNow()).toEqual(disks.map((disk) => copies.get(disk.path)));
    await libvirt.guestVerify(domain, 'vda', { ...BEFORE, length: 2 * MIB });
  });

  it('a file that is there already is not touched', async () => {
    const memoryFile = path.join(libvirt.directory, `state-${count}`);
    fs.writeFileSync(memoryFile, 'precious');
    await expect(freeze({ options: { quiesce: 'no', memoryFile } })).rejects.toThrow(
      /cannot be saved.*EEXIST/,
    );
    await expectMerged();
    expect(fs.readFileSync(memoryFile, 'utf8')).toBe('precious');
  });

  it('a file that was put in the place of the memory stays', async () => {
    const memoryFile = path.join(libvirt.directory, `state-${count}`);
    await freeze({ options: { quiesce: 'no', memoryFile } });
    fs.writeFileSync(`${memoryFile}.new`, 'precious');
    fs.renameSync(`${memoryFile}.new`, memoryFile);
    await expectMerged();
    expect(fs.readFileSync(memoryFile, 'utf8')).toBe('precious');
  });

  it("somebody else's job goes on when a saving that was cut off is undone", async () => {
    const { virsh, journal } = session;
    const file = path.join(libvirt.directory, `state-${count}`);
    prepareMemoryFile({ virsh, domain, qemu: libvirt.qemu(domain), journal, file });
    const xml = path.join(libvirt.directory, `backup-${count}.xml`);
    const socket = path.join(libvirt.directory, `backup-${count}`);
    fs.writeFileSync(
      xml,
      `<domainbackup mode='pull'><server transport='unix' socket='${socket}'/></domainbackup>`,
    );
    await virsh.call('backup-begin', ['--domain', domain.uuid, '--backupxml', xml]);
    expect(await session.undo()).toEqual([]);
    expect(fs.existsSync(file)).toBe(false);
    expect(await virsh.domainJob(domain.uuid)).toMatchObject({ isBackup: true });
    await virsh.abortDomainJob(domain.uuid);
  });

  it.each([
    [{ options: { quiesce: 'require', memoryFile: '/x' } }, '--quiesce'],
    [{ options: { quiesce: 'no', memoryFile: '/x' }, shutdown: { timeoutMs: 1 } }, '--shutdown'],
    [{ options: { quiesce: 'no', memoryFile: '/x' }, snapshot: 'none' }, '--snapshot=none'],
  ] as const)('is refused with what makes no sense %#', async (more, option) => {
    await expect(freeze(more)).rejects.toMatchObject({
      kind: 'usage',
      hint: expect.stringContaining(option),
    });
  });
});

describe('--shutdown', () => {
  it('off, frozen, and on again at once', async () => {
    virshThrough(OBEDIENT);
    const snapshot = await freeze({ shutdown: { timeoutMs: 60_000 } });
    expect(snapshot.consistency).toBe('offline');
    expect(await state()).toBe('running');
    expect(snapshot.disks.map(({ kind }) => kind)).toEqual(['overlay', 'overlay']);
    await libvirt.guestWrite(domain, 'vda', WRITTEN);
    for (const { image } of snapshot.disks)
      expect(await hasPattern(image.path, image.format, BEFORE)).toBe(true);
    await expectMerged();
    await libvirt.guestVerify(domain, 'vda', WRITTEN);
  });

  it('without a snapshot it stays off until the end', async () => {
    virshThrough(OBEDIENT);
    await freeze({ snapshot: 'none', shutdown: { timeoutMs: 60_000 } });
    expect(await state()).toBe('shut off');
    await expectMerged();
    expect(await state()).toBe('running');
  });

  it('a snapshot that fails: it runs again all the same', async () => {
    virshThrough(OBEDIENT);
    const overlayDirectory = path.join(libvirt.directory, 'nowhere');
    await expect(
      freeze({ shutdown: { timeoutMs: 60_000 }, options: { quiesce: 'no', overlayDirectory } }),
    ).rejects.toThrow('nowhere');
    await expectMerged();
    expect(await state()).toBe('running');
  });

  it('a guest that does not listen: an error, and nothing done', async () => {
    await expect(freeze({ shutdown: { timeoutMs: 1500 } })).rejects.toMatchObject({
      message: expect.stringContaining('did not shut down within 2 s'),
      hint: expect.stringContaining('--shutdown-timeout'),
    });
    expect(await state()).toBe('running');
    await expectMerged();
  });

  it('a guest that shuts down when nobody waits any more runs again', async () => {
    const nobody = path.join(libvirt.directory, `nobody-waits-${count}`);
    const later = `setsid sh -c ': >"$0.asked"; while [ ! -e "$0" ]; do sleep 0.1; done; sleep 2; exec virsh "$@"' '${nobody}' "$@" >/dev/null 2>&1 &`;
    virshThrough(`case " $* " in *' shutdown '*) ${OBEDIENT}; ${later} exit 0;; esac`);
    const qemu = libvirt.qemu(domain);
    const signal = signalWhenThere(`${nobody}.asked`);
    await expect(freeze({ shutdown: { timeoutMs: 60_000 }, signal })).rejects.toThrow();
    expect(isAlive(qemu)).toBe(true);
    fs.writeFileSync(nobody, '');
    await expectMerged();
    expect(isAlive(qemu)).toBe(false);
    expect(await state()).toBe('running');
  });

  it('a VM that is paused is frozen as it is, which is told', async () => {
    await libvirt.virsh.suspend(domain.uuid);
    expect(await freeze({ shutdown: { timeoutMs: 1500 } })).toMatchObject({ consistency: 'crash' });
    expect(session.reporter.messages.join('\n')).toMatch(/warn: freeze-\d+ is paused and cannot shut down/);
    await expectMerged();
    expect(await state()).toBe('paused');
  });

  it('a transient VM would be gone', async () => {
    await libvirt.remove(domain);
    domain = await libvirt.define(`freeze-${count}`, disks, { transient: true });
    await expect(freeze({ shutdown: { timeoutMs: 1500 } })).rejects.toThrow(/is transient/);
    expect(await state()).toBe('running');
  });
});

describe('a merge that takes too long', () => {
  it('is bounded: the VM runs on, nothing is deleted, and a later cleanup finishes', async () => {
    await freeze({ exclude: ['vdb'] });
    await libvirt.guestWrite(domain, 'vda', { offset: 0, length: 4 * MIB, pattern: 0x33 });
    // A commit of 1 KiB/s, and nobody lifts its limit.
    virshThrough(
      'case "$*" in *blockcommit*) set -- "$@" --bandwidth 1024 --bytes;; *--bandwidth*) exit 0;; esac',
    );
    const started = Date.now();
    const [error] = await session.undo({ commitTimeoutMs: 2000 });
    expect(Date.now() - started).toBeLessThan(30_000);
    expect(error).toMatchObject({
      message: expect.stringMatching(/disk vda of freeze-\d+ is not merged yet/),
      hint: expect.stringContaining('another cleanup finishes it'),
    });
    expect(await state()).toBe('running');
    expect(fs.readdirSync(directory)).toHaveLength(3);
    process.env.PATH = path0;
    await expectMerged();
    await libvirt.guestVerify(domain, 'vda', { offset: 0, length: 4 * MIB, pattern: 0x33 });
  });
});
