import * as fs from 'node:fs';
import * as path from 'node:path';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { isWrittenByQemu } from '../../src/image/image-lock.js';
import { runningBackup } from '../../src/libvirt/backup-job.js';
import { listCheckpoints } from '../../src/libvirt/checkpoints.js';
import { socketDirectory } from '../../src/snapshot/pull/place.js';
import { pullProvider } from '../../src/snapshot/pull/provider.js';
import { whileOpenForWriting } from '../support/held-open.js';
import {
  eventually,
  makeTwoDisks,
  signalWhenThere,
  type TestDomain,
  TestLibvirt,
} from '../support/libvirt.js';
import { SnapshotSession } from '../support/snapshot-session.js';

const checkpoints = { since: new Map<string, string>() };

let libvirt: TestLibvirt;
let directory: string;
let domain: TestDomain;
let session: SnapshotSession;
let count = 0;

beforeAll(async () => {
  libvirt = await TestLibvirt.start();
  directory = path.join(libvirt.directory, 'images');
  fs.mkdirSync(directory);
  const disks = await makeTwoDisks(directory);
  domain = await libvirt.define('crash', disks);
});

afterAll(() => libvirt?.close());

beforeEach(() => {
  count++;
  session = new SnapshotSession(libvirt.virsh, path.join(libvirt.directory, `session-${count}`), `p${count}`);
});

afterEach(async () => {
  await session.undo();
  if ((await libvirt.virsh.state(domain.uuid)).state === 'shut off') await libvirt.virsh.start(domain.uuid);
});

/** Nothing is left of the session. */
async function expectRestored(): Promise<void> {
  expect(session.journal.pending()).toEqual([]);
  expect(fs.readdirSync(directory).sort()).toEqual(['vda.qcow2', 'vdb.img']);
  expect(fs.existsSync(socketDirectory(session.id))).toBe(false);
  expect(await runningBackup(libvirt.virsh, domain.uuid)).toBeUndefined();
  expect(await listCheckpoints(libvirt.virsh, domain.uuid)).toEqual([]);
}

function freeze(): Promise<unknown> {
  return session.freeze(pullProvider, domain.name, { checkpoints });
}

/** More than the journal gets: so the last one does not die at all. */
const RECORDS = Array.from({ length: 12 }, (_, index) => index + 1);

describe('killed while freezing', () => {
  it.each(RECORDS)('after journal record %i', async (records) => {
    expect(await session.dyingFreeze(pullProvider, domain.name, { records }, { checkpoints })).toBe(
      records <= 11,
    );
    expect(await session.undo()).toEqual([]);
    await expectRestored();
  });

  it.each(RECORDS)('before journal record %i was written', async (records) => {
    const death = { records, before: true };
    expect(await session.dyingFreeze(pullProvider, domain.name, death, { checkpoints })).toBe(records <= 11);
    expect(await session.undo()).toEqual([]);
    await expectRestored();
  });
});

describe("a scratch file's name that is somebody else's", () => {
  const scratch = () => path.join(directory, `vda.cm-${session.id}.scratch.qcow2`);

  it('stays theirs when they took it before the file was made', async () => {
    expect(await session.dyingFreeze(pullProvider, domain.name, { records: 1 })).toBe(true);
    fs.writeFileSync(scratch(), 'mine');
    expect(await session.undo()).toEqual([]);
    expect(session.reporter.messages.join('\n')).toContain('is left alone');
    expect(fs.readFileSync(scratch(), 'utf8')).toBe('mine');
    fs.rmSync(scratch());
    await expectRestored();
  });

  it('stays theirs also when it is empty', async () => {
    fs.writeFileSync(scratch(), '');
    await expect(freeze()).rejects.toThrow(/cannot be made: EEXIST/);
    expect(await session.undo()).toEqual([]);
    expect(fs.statSync(scratch()).size).toBe(0);
    fs.rmSync(scratch());
    await expectRestored();
  });
});

describe('killed while undoing', () => {
  async function dyingUndo(records: number): Promise<void> {
    await freeze();
    expect(await session.dyingUndo({ records })).toBe(records <= 4);
  }

  it.each([1, 2, 3, 4, 5])('after journal record %i: the next cleanup finishes', async (records) => {
    await dyingUndo(records);
    expect(await session.undo()).toEqual([]);
    await expectRestored();
  });

  it('after journal record 1, and QEMU too', async () => {
    await dyingUndo(1);
    await libvirt.killQemu(domain);
    expect(await session.undo()).toEqual([]);
    await expectRestored();
  });
});

describe('what happens to the job meanwhile', () => {
  it('QEMU is killed: cleanup removes the broken checkpoint without it', async () => {
    await freeze();
    await libvirt.killQemu(domain);
    expect(await session.undo()).toEqual([]);
    await expectRestored();
  });

  it('QEMU is killed and started again: cleanup removes the broken checkpoint, and the disk can be resized', async () => {
    await freeze();
    await libvirt.killQemu(domain);
    await libvirt.virsh.start(domain.uuid);
    expect(await session.undo()).toEqual([]);
    await expectRestored();
    await libvirt.virsh.call('blockresize', ['--domain', domain.uuid, '--path', 'vda', '--size', '8M']);
  });

  it('the VM is shut down', async () => {
    await freeze();
    await libvirt.virsh.call('destroy', ['--domain', domain.uuid]);
    expect(await session.undo()).toEqual([]);
    await expectRestored();
  });

  it('somebody ended it, and begins one of their own, which is left alone', async () => {
    await freeze();
    await libvirt.virsh.abortDomainJob(domain.uuid);
    const [xml, scratch] = ['other.xml', 'other.scratch'].map((name) => path.join(libvirt.directory, name));
    const disk = `<disk name='vda' backup='yes' type='file'><driver type='qcow2'/><scratch file='${scratch}'/></disk>`;
    const socket = path.join(libvirt.directory, 'other.sock');
    fs.writeFileSync(
      xml!,
      `<domainbackup mode='pull'><server transport='unix' socket='${socket}'/><disks>${disk}<disk name='vdb' backup='no'/></disks></domainbackup>`,
    );
    await libvirt.virsh.call('backup-begin', ['--domain', domain.uuid, '--backupxml', xml!]);
    const errors = await session.undo();
    expect(errors.map(({ message }) => message)).toEqual([
      expect.stringContaining('cannot be deleted: a job works on the VM'),
    ]);
    expect((await runningBackup(libvirt.virsh, domain.uuid))?.socket).toBe(socket);
    await libvirt.virsh.abortDomainJob(domain.uuid);
    expect(await session.undo()).toEqual([]);
    await expectRestored();
  });

  it('libvirtd is killed: cleanup fails while it is away, and works when it is back', async () => {
    await freeze();
    await libvirt.stopDaemon('SIGKILL');
    const errors = await session.undo();
    expect(errors.length).toBeGreaterThan(0);
    await libvirt.startDaemon();
    expect(await session.undo()).toEqual([]);
    await expectRestored();
  });

  it('a program still has the scratch file open: it stays until that is over', async () => {
    await freeze();
    await libvirt.virsh.abortDomainJob(domain.uuid);
    const scratch = path.join(directory, `vda.cm-${session.id}.scratch.qcow2`);
    await eventually(async () => !(await isWrittenByQemu(scratch)));
    await whileOpenForWriting({ path: scratch, format: 'qcow2' }, async () => {
      expect((await session.undo()).map(({ message }) => message)).toEqual([
        `the backup job of ${domain.name} still uses ${scratch} for disk vda`,
      ]);
      expect(fs.existsSync(scratch)).toBe(true);
    });
    expect(await session.undo()).toEqual([]);
    await expectRestored();
  });

  it('the scratch file is another one: it is left alone', async () => {
    await freeze();
    const scratch = path.join(directory, `vda.cm-${session.id}.scratch.qcow2`);
    fs.renameSync(scratch, `${scratch}.old`);
    fs.writeFileSync(scratch, 'mine');
    expect(await session.undo()).toEqual([]);
    expect(session.reporter.messages.join('\n')).toContain('is left alone');
    expect(fs.readFileSync(scratch, 'utf8')).toBe('mine');
    fs.rmSync(scratch);
    fs.rmSync(`${scratch}.old`);
    await expectRestored();
  });
});

describe('killed while libvirt begins the job', () => {
  const real = process.env.PATH;
  afterEach(() => {
    process.env.PATH = real;
  });

  it.each([
    ['', checkpoints],
    [', also the second one that was asked for', { since: new Map([['vda', 'cm-gone']]) }],
  ])('a job that comes seconds later is found and ended%s', async (_, checkpoints) => {
    const bin = path.join(libvirt.directory, `bin-${count}`);
    fs.mkdirSync(bin);
    const comes = path.join(bin, 'comes');
    // Goes on in the background when it is killed, and takes its time: as libvirtd does.
    const script = `#!/bin/sh
case "$*" in
  *backup-begin*)
    if [ ! -e '${bin}/asked' ] && [ ${checkpoints.since.size} -gt 0 ]; then
      : >'${bin}/asked'
      PATH='${real}' exec virsh "$@"
    fi
    PATH='${real}' setsid sh -c ': >"$0"; sleep 3; exec virsh "$@"' '${comes}' "$@" 3<&3 4<&4 >/dev/null 2>&1 &
    exec sleep 60;;
  *) PATH='${real}' exec virsh "$@";;
esac
`;
    fs.writeFileSync(path.join(bin, 'virsh'), script, { mode: 0o755 });
    process.env.PATH = `${bin}:${real}`;
    const signal = signalWhenThere(comes);
    await expect(session.freeze(pullProvider, domain.name, { checkpoints, signal })).rejects.toThrow(
      /abort|stopped/,
    );
    const started = Date.now();
    expect(await session.undo()).toEqual([]);
    expect(Date.now() - started).toBeGreaterThan(500);
    await expectRestored();
  });

  it('is not asked again when libvirt did not answer', async () => {
    const bin = path.join(libvirt.directory, `bin-${count}`);
    fs.mkdirSync(bin);
    const script = `#!/bin/sh
case "$*" in
  *backup-begin*) echo >>'${bin}/asked'; kill -KILL $$;;
  *) PATH='${real}' exec virsh "$@";;
esac
`;
    fs.writeFileSync(path.join(bin, 'virsh'), script, { mode: 0o755 });
    process.env.PATH = `${bin}:${real}`;
    await expect(freeze()).rejects.toThrow('no backup job of crash could be begun');
    expect(fs.readFileSync(path.join(bin, 'asked'), 'utf8')).toBe('\n');
    expect(await session.undo()).toEqual([]);
    await expectRestored();
  });
});
