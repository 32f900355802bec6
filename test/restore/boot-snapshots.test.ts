import * as fs from 'node:fs';
import * as path from 'node:path';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { run } from '../../src/host/exec.js';
import { BootSession, contentAfter } from './boot-session.js';
import { expectError } from './image-session.js';
import { removeDomain } from './vm-tree.js';

let session: BootSession;

beforeAll(async () => {
  session = await BootSession.start();
});

afterAll(() => session?.close());

beforeEach(() => session.fresh());

afterEach(() => session.sweep());

describe('boot --finish, of a VM that somebody made snapshots of', () => {
  it('refuses while a snapshot lies on the overlay', async () => {
    const domain = await session.booted();
    const snapshot = session.file('snapshot.qcow2');
    await session.libvirt.virsh.call('snapshot-create-as', [
      ...['--domain', domain.uuid, '--disk-only', '--no-metadata', '--name', 's'],
      ...['--diskspec', `vda,file=${snapshot}`, '--diskspec', 'vdb,snapshot=no'],
    ]);
    const { message, hint } = expectError(await session.end('finish'), 1);
    expect(message).toBe(`disk vda of mail01-boot is on ${snapshot}, not on ${session.overlay('vda')}`);
    expect(hint).toContain('merge the snapshot');
    fs.rmSync(snapshot);
  });

  it.each(['runs', 'is off'])('refuses while an overlay has a snapshot inside: the VM %s', async (how) => {
    const domain = await session.booted();
    if (how === 'is off') await session.libvirt.killQemu(domain);
    await session.libvirt.virsh.call('snapshot-create-as', ['--domain', domain.uuid, '--name', 's']);
    const { message, hint } = expectError(await session.end('finish'), 1);
    const what = `${session.overlay('vda')}, disk vda of mail01-boot, has snapshots inside (1)`;
    expect(message).toBe(`${what} that need the backup`);
    expect(hint).toContain('virsh snapshot-delete');
    const state = path.join(session.directory, 'state.raw');
    const from = ['-U', '-f', 'qcow2', '-l', 'snapshot.name=s', session.overlay('vda')];
    await run('qemu-img', ['convert', '-O', 'raw', ...from, state]);
    expect(fs.readFileSync(state).equals(contentAfter('vda', []))).toBe(true);
    await session.libvirt.virsh.call('snapshot-delete', ['--domain', domain.uuid, '--snapshotname', 's']);
    await session.ended('finish');
    await session.expectFinished([]);
  });
});

describe('boot --discard, of a VM that is backed up', () => {
  let backups: string;
  const cleanup = () => session.chunkmount.succeed('cleanup', '--vm=mail01-boot');

  beforeEach(async () => {
    backups = path.join(session.directory, 'backups');
    const where = [`--connect=${session.libvirt.uri}`, `--backupdir=${backups}`];
    await session.booted();
    await session.chunkmount.succeed('mount', '--vm=mail01-boot', ...where);
  });

  it('leaves everything until the backup has ended', async () => {
    const { message, hint } = expectError(await session.end('discard'), 1);
    expect(message).toContain(`${session.overlay('vda')} is only a part of the disk of mail01-boot`);
    expect(hint).toContain('chunkmount cleanup --vm=mail01-boot');
    expect(await session.state()).toBe('running');
    await cleanup();
    await session.ended('discard');
    await session.expectNothing();
  });

  it('also when somebody removed the VM', async () => {
    await removeDomain(session.libvirt, 'mail01-boot');
    expectError(await session.end('discard'), 1);
    await cleanup();
    await session.ended('discard');
    await session.expectNothing();
  });
});
