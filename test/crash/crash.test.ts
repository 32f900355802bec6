import * as fs from 'node:fs';
import * as path from 'node:path';
import { execa } from 'execa';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { systemCode } from '../../src/errors.js';
import { findProcesses } from '../../src/host/process-list.js';
import { expectError } from '../cli/expectations.js';
import { eventually, hasPattern } from '../support/libvirt.js';
import { build, fuseDevice, program, requireAll, root } from '../support/requirements.js';
import { CrashSession, DISK_SIZE, type Freezing, WRITTEN } from './crash-session.js';

const FREEZINGS: readonly (Freezing & { readonly records: number; readonly undone: number })[] = [
  { name: 'overlay', options: [], runs: true, writes: true, records: 16, undone: 11 },
  { name: 'pause', options: ['--no-snapshot'], runs: true, writes: false, records: 6, undone: 3 },
  { name: 'none', options: [], runs: false, writes: false, records: 6, undone: 3 },
];

let session: CrashSession;

beforeAll(async () => {
  await requireAll(root, build, fuseDevice, program('qemu-img', 'qemu-utils'));
  session = await CrashSession.start();
});

afterAll(async () => {
  if (session !== undefined) console.log(`\n${session.table()}\n`);
  await session?.close();
});

afterEach(async () => {
  await session.chunkmount.run(['cleanup', '--all']);
  await session.dispose();
});

const numbers = (count: number) => Array.from({ length: count }, (_, index) => index + 1);

describe.each(FREEZINGS)('frozen by $name', (freezing) => {
  beforeEach(() => session.fresh(freezing));

  const mountArgs = () => [
    `--vm=${session.domain.name}`,
    `--connect=${session.libvirt.uri}`,
    ...freezing.options,
  ];

  async function mounted(): Promise<void> {
    const { exitCode, stderr } = await session.mount(...freezing.options);
    expect(exitCode, stderr).toBe(0);
    if (freezing.writes) await session.guestWrites();
  }

  it.each(numbers(freezing.records))('chunkmount killed after record %i of mount', async (records) => {
    const { died } = await session.dying(records, mountArgs());
    expect(died).toBe(true);
    // Whoever writes while the tree is made is the guest.
    if (freezing.writes) await session.guestWrites();
    const found = await session.state();
    const daemon = records % 2 === 0 && (await session.killDaemon());
    session.note(freezing.name, `mount after record ${records}${daemon ? ', and its daemon' : ''}`, found);
    await session.cleansUp();
    await session.expectWell(freezing, freezing.writes);
  });

  it('there are no more records than that in mount', async () => {
    const { died, records } = await session.dying(1000, mountArgs());
    expect({ died, records }).toEqual({ died: false, records: freezing.records });
    await session.cleansUp();
    await session.expectWell(freezing, false);
  });

  it.each(numbers(freezing.undone))('chunkmount killed after record %i of cleanup', async (records) => {
    await mounted();
    const { died } = await session.dying(records, ['cleanup', `--vm=${session.domain.name}`]);
    expect(died).toBe(true);
    session.note(freezing.name, `cleanup after record ${records}`, await session.state());
    await session.cleansUp();
    await session.expectWell(freezing, freezing.writes);
  });

  it('there are no more records than that in cleanup', async () => {
    await mounted();
    const { died, records } = await session.dying(1000, ['cleanup', `--vm=${session.domain.name}`]);
    expect({ died, records }).toEqual({ died: false, records: freezing.undone });
    await session.expectWell(freezing, freezing.writes);
  });

  it('the daemon is killed: reading fails, and cleanup says that there is no whole backup', async () => {
    await mounted();
    expect(await session.killDaemon()).toBe(true);
    const reading = () => fs.promises.readFile(path.join(session.tree, 'manifest.json')).catch(systemCode);
    // What was asked while it died is answered otherwise, but never with content.
    await eventually(async () => {
      const answer = await reading();
      expect(['ECONNABORTED', 'ENOTCONN']).toContain(answer);
      return answer === 'ENOTCONN';
    });
    session.note(freezing.name, 'the daemon, while mounted', await session.state());
    await session.cleansUp(/^the daemon of vm\d+ died before its tree was unmounted/);
    await session.expectWell(freezing, freezing.writes);
  });

  it('libvirtd is killed: what needs it is cleaned up when it is back', async () => {
    await mounted();
    await session.libvirt.stopDaemon('SIGKILL');
    const found = await session.state();
    // What stands on no snapshot needs no libvirt to be given back.
    const early = await session.cleanup();
    expect(early, early.stderr).toMatchObject({ exitCode: freezing.runs ? 1 : 0, stdout: '' });
    await session.libvirt.startDaemon();
    session.note(freezing.name, 'libvirtd, while mounted', found);
    await session.cleansUp();
    await session.expectWell(freezing, freezing.writes);
  });
});

describe('the VM and what it stands on', () => {
  const overlay = { name: 'overlay', options: [], runs: true, writes: true };
  beforeEach(() => session.fresh(overlay));

  it('QEMU is killed: the overlays are merged without it, and the VM stays off', async () => {
    expect((await session.mount()).exitCode).toBe(0);
    await session.guestWrites();
    await session.libvirt.killQemu(session.domain);
    session.note('overlay', 'QEMU, while mounted', await session.state());
    await session.cleansUp();
    await session.expectWell({ runs: false }, true);
  });

  it('the file system of the overlays runs full: what could be written is merged', async () => {
    const { small } = session;
    const result = await session.mount(`--overlay-dir=${small}`);
    expect(result.exitCode, result.stderr).toBe(0);
    await session.guestWrites();
    const filler = session.fill();
    const much = { offset: 0, length: DISK_SIZE, pattern: 0x77 };
    await expect(session.libvirt.guestWrite(session.domain, 'vdb', much)).rejects.toThrow();
    session.note('overlay', 'the overlays’ file system is full', await session.state());
    await session.cleansUp();
    expect(fs.readdirSync(small)).toEqual(['filler']);
    fs.rmSync(filler);
    const { path: image, format } = session.disks[0]!;
    expect(await hasPattern(image, format, WRITTEN)).toBe(true);
    expect((await session.libvirt.virsh.state(session.domain.uuid)).state).toBe('running');
  });

  it('the state directory becomes read-only: cleanup says so, and does its work when it is writable', async () => {
    const { stateDirectory } = session.chunkmount;
    expect((await session.mount()).exitCode).toBe(0);
    await session.guestWrites();
    await execa('mount', ['--bind', stateDirectory, stateDirectory]);
    await execa('mount', ['-o', 'remount,bind,ro', stateDirectory]);
    try {
      const told = expectError(await session.cleanup(), 1);
      expect(told.message).toContain(stateDirectory);
      session.note('overlay', 'the state directory is read-only', await session.state());
    } finally {
      await execa('umount', ['--lazy', stateDirectory]);
    }
    await session.cleansUp();
    await session.expectWell(overlay, true);
  });

  it('the view of a compressed image goes away: reading fails, and cleanup says that there is no whole backup', async () => {
    const image = path.join(session.images, 'compressed.qcow2');
    await execa('qemu-img', ['convert', '-U', '-c', '-O', 'qcow2', session.disks[1]!.path, image]);
    const name = 'compressed';
    // So slowly that the chunk has not been read yet: what has is in the page cache, which outlives the view.
    await session.chunkmount.succeed(`--image=${image}`, `--name=${name}`, '--bwlimit=64K');
    const directory = path.join(session.chunkmount.stateDirectory, 'sessions', name);
    const [view] = findProcesses(
      (argv) =>
        argv[0]?.endsWith('qemu-storage-daemon') === true &&
        argv.some((arg) => arg.includes(`${directory}/`) && !arg.includes('/hold-')),
    );
    expect(view).toBeDefined();
    process.kill(view!.pid, 'SIGKILL');
    const chunk = path.join(session.chunkmount.tree(name), 'disk0', '000000', '00000003');
    await expect(fs.promises.readFile(chunk)).rejects.toThrow(/EIO/);
    session.note('image', 'the view that decompresses', 'failed');
    const told = expectError(await session.chunkmount.run(['cleanup', `--name=${name}`]), 1);
    expect(told.message).toMatch(/not whole/);
    fs.rmSync(image);
    await session.expectWell(overlay, false);
  });
});
