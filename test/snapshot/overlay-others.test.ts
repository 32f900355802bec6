import * as fs from 'node:fs';
import * as path from 'node:path';
import { describe, expect, it } from 'vitest';
import { run } from '../../src/host/exec.js';
import { identify, signalProcess } from '../../src/host/process-identity.js';
import { loadDomain } from '../../src/libvirt/load-domain.js';
import { overlayProvider } from '../../src/snapshot/overlay/provider.js';
import { eventually, makeImage } from '../support/libvirt.js';
import {
  BEFORE,
  count,
  directory,
  disks,
  domain,
  expectMerged,
  freezeAndWrite,
  images,
  libvirt,
  MIB,
  pathsNow,
  releaseHolds,
  session,
  setDisks,
  start,
  useOverlayVm,
  WRITTEN,
  WRITTEN_LATER,
} from './overlay-vm.js';

useOverlayVm();

describe('chains', () => {
  async function layers(file: string): Promise<string[]> {
    const { stdout } = await run('qemu-img', ['info', '-U', '--backing-chain', '--output=json', file]);
    return (JSON.parse(stdout) as { filename: string }[]).map(({ filename }) => filename);
  }

  it('internal snapshots and checkpoints stay', async () => {
    // An internal snapshot needs qcow2 for all disks.
    setDisks([disks[0]!]);
    await start();
    await libvirt.virsh.call('snapshot-create-as', ['--domain', domain.uuid, '--name', 'internal']);
    await libvirt.virsh.call('checkpoint-create-as', ['--domain', domain.uuid, '--name', 'point']);
    await freezeAndWrite();
    expect(await session.undo()).toEqual([]);
    expect(await pathsNow()).toEqual(images());
    await libvirt.guestVerify(domain, 'vda', WRITTEN);
    expect(await libvirt.virsh.call('snapshot-list', ['--domain', domain.uuid, '--name'])).toContain(
      'internal',
    );
    expect(await libvirt.virsh.call('checkpoint-list', ['--domain', domain.uuid, '--name'])).toContain(
      'point',
    );
    await libvirt.virsh.call('checkpoint-delete', ['--domain', domain.uuid, '--checkpointname', 'point']);
    await libvirt.virsh.call('snapshot-delete', ['--domain', domain.uuid, '--snapshotname', 'internal']);
  });

  it('an internal snapshot that was made meanwhile is not thrown away', async () => {
    setDisks([disks[0]!]);
    await start();
    await freezeAndWrite();
    const overlays = await pathsNow();
    const snapshot = ['--domain', domain.uuid, '--snapshotname', 'meanwhile'];
    await libvirt.virsh.call('snapshot-create-as', ['--domain', domain.uuid, '--name', 'meanwhile']);
    await libvirt.guestWrite(domain, 'vda', WRITTEN_LATER);
    const [error] = await session.undo();
    expect(error).toMatchObject({
      message: expect.stringContaining('internal snapshots were made since'),
      hint: expect.stringContaining('snapshot-list'),
    });
    expect(await pathsNow()).toEqual(overlays);
    await libvirt.virsh.call('snapshot-revert', [...snapshot, '--force']);
    await libvirt.guestVerify(domain, 'vda', { ...WRITTEN_LATER, pattern: BEFORE.pattern });
    await libvirt.virsh.call('snapshot-delete', snapshot);
    expect(await session.undo()).toEqual([]);
    expect(await pathsNow()).toEqual(images());
    await libvirt.guestVerify(domain, 'vda', WRITTEN);
  });

  it('nor is one in an overlay that somebody else merged', async () => {
    setDisks([disks[0]!]);
    await start();
    await freezeAndWrite();
    const [overlay] = await pathsNow();
    await libvirt.virsh.call('snapshot-create-as', ['--domain', domain.uuid, '--name', 'meanwhile']);
    await releaseHolds();
    const merge = ['--base', disks[0]!.path, '--top', overlay!, '--active', '--pivot'];
    await libvirt.virsh.call('blockcommit', ['--domain', domain.uuid, '--path', 'vda', ...merge]);
    const [error] = await session.undo();
    expect(error?.message).toContain('would be lost');
    fs.rmSync(overlay!);
    expect(await session.undo()).toEqual([]);
    await libvirt.virsh.call('snapshot-delete', [
      ...['--domain', domain.uuid, '--snapshotname', 'meanwhile', '--metadata'],
    ]);
  });

  it("the user's own layers stay as they are", async () => {
    const template = path.join(libvirt.directory, `template-${count}.qcow2`);
    await makeImage(template, 'qcow2', 4 * MIB, BEFORE.pattern);
    const top = path.join(directory, 'vda.qcow2');
    await run('qemu-img', ['create', '-q', '-f', 'qcow2', '-b', template, '-F', 'qcow2', top]);
    const before = fs.readFileSync(template);
    await start();
    await freezeAndWrite();
    expect(await session.undo()).toEqual([]);
    await expectMerged();
    expect(await layers(top)).toEqual([top, template]);
    expect(fs.readFileSync(template).equals(before)).toBe(true);
  });

  it('what ends on the network is merged back, too', async () => {
    const far = path.join(libvirt.directory, `far-${count}.img`);
    await makeImage(far, 'raw', 4 * MIB, BEFORE.pattern);
    const socket = path.join(libvirt.directory, `far-${count}`);
    const pidFile = `${socket}.pid`;
    await run('qemu-nbd', [
      '--fork',
      '--shared=0',
      '-r',
      '-t',
      '-f',
      'raw',
      `--pid-file=${pidFile}`,
      '-k',
      socket,
      '-x',
      'x',
      far,
    ]);
    const server = identify(Number(fs.readFileSync(pidFile, 'utf8')))!;
    try {
      const top = path.join(directory, 'top.qcow2');
      const url = `nbd+unix:///x?socket=${socket}`;
      await run('qemu-img', ['create', '-q', '-f', 'qcow2', '-b', url, '-F', 'raw', top]);
      setDisks([{ target: 'vda', path: top, format: 'qcow2' }]);
      await start();
      await freezeAndWrite();
      expect(await session.undo()).toEqual([]);
      expect(await pathsNow()).toEqual([top]);
      expect(fs.readdirSync(directory).filter((file) => file.includes('.cm-'))).toEqual([]);
      await libvirt.guestVerify(domain, 'vda', WRITTEN);
      await libvirt.killQemu(domain);
    } finally {
      signalProcess(server, 'SIGKILL');
    }
  });

  it('a snapshot that somebody made on ours then lies on the base', async () => {
    await start();
    await freezeAndWrite();
    const above = path.join(libvirt.directory, `above-${count}.qcow2`);
    const xml = path.join(libvirt.directory, `above-${count}.xml`);
    fs.writeFileSync(
      xml,
      `<domainsnapshot><disks><disk name='vda' snapshot='external'><source file='${above}'/></disk><disk name='vdb' snapshot='no'/></disks></domainsnapshot>`,
    );
    await libvirt.virsh.call('snapshot-create', [
      '--domain',
      domain.uuid,
      '--xmlfile',
      xml,
      '--disk-only',
      '--no-metadata',
    ]);
    await libvirt.guestWrite(domain, 'vda', WRITTEN_LATER);
    expect(await session.undo()).toEqual([]);
    await expectMerged();
    expect(await pathsNow()).toEqual([above, disks[1]!.path]);
    expect(await layers(above)).toEqual([above, disks[0]!.path]);
    await libvirt.guestVerify(domain, 'vda', WRITTEN_LATER);
    await libvirt.guestVerify(domain, 'vda', WRITTEN);
  });
});

describe('jobs of others', () => {
  it('a disk that is being copied is refused, with the reason', async () => {
    await start({ transient: true });
    await copyDisk();
    const loaded = await loadDomain(libvirt.virsh, domain.name);
    const [vda, vdb] = loaded.disks;
    expect(await overlayProvider.refusal({ virsh: libvirt.virsh, domain: loaded }, vda!)).toMatch(
      /^disk vda: a block job \(copy\)/,
    );
    expect(await overlayProvider.refusal({ virsh: libvirt.virsh, domain: loaded }, vdb!)).toBeUndefined();
  });

  it('a backup job of somebody else is refused at once, with the reason', async () => {
    await start();
    const xml = path.join(libvirt.directory, `backup-${count}.xml`);
    const socket = path.join(libvirt.directory, `backup-${count}.sock`);
    const scratch = (target: string) =>
      `<disk name='${target}' type='file'><scratch file='${path.join(libvirt.directory, `scratch-${count}-${target}`)}'/></disk>`;
    fs.writeFileSync(
      xml,
      `<domainbackup mode='pull'><server transport='unix' socket='${socket}'/><disks>${scratch('vda')}${scratch('vdb')}</disks></domainbackup>`,
    );
    await libvirt.virsh.call('backup-begin', ['--domain', domain.uuid, '--backupxml', xml]);
    const loaded = await loadDomain(libvirt.virsh, domain.name);
    const refusal = await overlayProvider.refusal({ virsh: libvirt.virsh, domain: loaded }, loaded.disks[0]!);
    expect(refusal).toMatch(/^disk vda: a job \(backup, migration, save or dump\) works on recovery-/);
    await libvirt.virsh.abortDomainJob(domain.uuid);
  });

  it('a copy that began during the backup: the overlay is kept until it has ended', async () => {
    await start({ transient: true });
    await freezeAndWrite();
    await copyDisk();
    const errors = await session.undo();
    expect(errors.map(({ message }) => message)).toEqual([
      expect.stringContaining('another block job works on the disk'),
    ]);
    await libvirt.virsh.call('blockjob', ['--domain', domain.uuid, '--path', 'vda', '--abort']);
    expect(await session.undo()).toEqual([]);
    await expectMerged();
  });

  async function copyDisk(): Promise<void> {
    const copy = path.join(libvirt.directory, `copy-${count}.qcow2`);
    await libvirt.virsh.call('blockcopy', [
      '--domain',
      domain.uuid,
      '--path',
      'vda',
      '--dest',
      copy,
      '--format',
      'qcow2',
    ]);
  }

  it('a merge that is ready but was not finished is finished', async () => {
    await start();
    await freezeAndWrite();
    await endHolds();
    await commitByHand([]);
    await eventually(
      async () => (await loadDomain(libvirt.virsh, domain.name)).disks[0]?.mirror?.ready === true,
    );
    expect(await session.undo()).toEqual([]);
    await expectMerged();
  });

  it('QEMU was killed when the merge was ready', async () => {
    await start();
    await freezeAndWrite();
    await endHolds();
    await commitByHand([]);
    await libvirt.killQemu(domain);
    for (const entry of session.journal.pending()) session.journal.done(entry, { committing: true });
    expect(await session.undo()).toEqual([]);
    await expectMerged();
  });

  it('somebody merged it by hand', async () => {
    await start();
    await freezeAndWrite();
    await endHolds();
    await commitByHand(['--wait', '--pivot']);
    expect(await session.undo()).toEqual([]);
    await expectMerged();
  });

  async function endHolds(): Promise<void> {
    const [hold] = session.journal.pending();
    await overlayProvider.undo[hold!.kind]!(hold!, { journal: session.journal, reporter: session.reporter });
    session.journal.undone(hold!);
  }

  async function commitByHand(more: string[]): Promise<void> {
    const top = (await pathsNow())[0]!;
    const args = [
      '--domain',
      domain.uuid,
      '--path',
      'vda',
      '--active',
      '--base',
      disks[0]!.path,
      '--top',
      top,
    ];
    await libvirt.virsh.call('blockcommit', [...args, ...more]);
  }
});

describe('files', () => {
  it('an overlay that exists already is not touched', async () => {
    await start();
    const existing = path.join(directory, `vdb.cm-r${count}.qcow2`);
    fs.writeFileSync(existing, '');
    await expect(session.freeze(overlayProvider, domain.name)).rejects.toThrow(/cannot be made.*EEXIST/);
    expect(await session.undo()).toEqual([]);
    expect(fs.existsSync(existing)).toBe(true);
    fs.rmSync(existing);
    expect(fs.readdirSync(directory).sort()).toEqual(['vda.qcow2', 'vdb.img']);
  });

  it('a file that took the place of the overlay after the merge is left alone', async () => {
    await start();
    await session.freeze(overlayProvider, domain.name);
    const [overlay] = await pathsNow();
    const entries = session.journal.pending();
    expect(await session.undo()).toEqual([]);
    fs.writeFileSync(overlay!, 'something else');
    for (const entry of entries) await overlayProvider.undo[entry.kind]!(entry, session);
    expect(fs.readFileSync(overlay!, 'utf8')).toBe('something else');
  });

  it('an overlay that another VM is defined on stays until it is not', async () => {
    await start();
    await session.freeze(overlayProvider, domain.name);
    const [overlay] = await pathsNow();
    const other = `other-${count}`;
    const disk = { target: 'vda', path: overlay!, format: 'qcow2' };
    const user = await libvirt.define(other, [disk], { start: false });
    const errors = await session.undo();
    expect(errors.map(({ message }) => message)).toEqual([
      expect.stringContaining(`${other} still refers to ${overlay}`),
    ]);
    expect(fs.existsSync(overlay!)).toBe(true);
    await libvirt.remove(user);
    expect(await session.undo()).toEqual([]);
    expect(fs.existsSync(overlay!)).toBe(false);
  });

  it('overlays go where --overlay-dir says', async () => {
    await start();
    const overlayDirectory = path.join(libvirt.directory, `overlays, ${count}`);
    fs.mkdirSync(overlayDirectory);
    await session.freeze(overlayProvider, domain.name, { overlayDirectory });
    expect(fs.readdirSync(overlayDirectory)).toHaveLength(2);
    expect(await session.undo()).toEqual([]);
    expect(fs.readdirSync(overlayDirectory)).toEqual([]);
  });

  it('a directory that does not exist is named', async () => {
    await start();
    const overlayDirectory = path.join(libvirt.directory, 'nowhere');
    await expect(session.freeze(overlayProvider, domain.name, { overlayDirectory })).rejects.toThrow(
      overlayDirectory,
    );
    expect(session.journal.pending()).toEqual([]);
  });
});
