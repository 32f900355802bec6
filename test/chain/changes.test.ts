import * as fs from 'node:fs';
import * as path from 'node:path';
import { describe, expect, it } from 'vitest';
import { liveChainFile } from '../../src/chain/live-chain.js';
import { choosePoint, openChain } from '../../src/chain/restore-point.js';
import { run } from '../../src/host/exec.js';
import { snapshotXml } from '../../src/snapshot/snapshot-xml.js';
import { makeImage } from '../support/libvirt.js';
import {
  chain,
  copies,
  directory,
  domain,
  expectIdle,
  layers,
  libvirt,
  MIB,
  own,
  pathsNow,
  restored,
  runOnce,
  state,
  to,
  useChainVm,
  writeAndRun,
} from './chain-vm.js';

useChainVm();

async function foreignSnapshot(): Promise<string> {
  const file = path.join(directory, 'foreign.qcow2');
  const xml = snapshotXml({ name: 'foreign', targets: ['vda', 'vdb'], overlays: new Map([['vda', file]]) });
  await libvirt.virsh.snapshotCreate(domain.uuid, xml);
  return file;
}

describe('what others did to the VM', () => {
  it('a snapshot on top is neither copied nor merged, until it is merged or all is copied anew', async () => {
    await writeAndRun();
    const top = (await pathsNow())[0]!;
    const before = layers();
    const foreign = await foreignSnapshot();
    await expect(runOnce()).rejects.toMatchObject({
      message: expect.stringContaining(`another snapshot, ${foreign}, lies on it`),
      hint: expect.stringContaining('--full'),
    });
    await expect(runOnce({ to: undefined, consolidate: 'blockcommit' })).rejects.toThrow(/another snapshot/);
    await expect(runOnce({ to: undefined, consolidate: 'blockpull' })).rejects.toThrow(/another snapshot/);
    expect(layers()).toEqual([...before, 'foreign.qcow2'].sort());
    const args = ['--domain', domain.uuid, '--path', 'vda', '--base', top, '--top', foreign, '--active'];
    await libvirt.virsh.call('blockcommit', [...args, '--wait', '--pivot']);
    fs.rmSync(foreign);
    const contents = await writeAndRun();
    expect((await restored('2', 'vda')).equals(contents.vda!)).toBe(true);
    await foreignSnapshot();
    const anew = await writeAndRun({ full: true, consolidate: 'blockcommit' });
    expect((await restored('3', 'vda')).equals(anew.vda!)).toBe(true);
    // What lies below the foreign one is not ours any more; the raw disk was merged.
    expect((await pathsNow())[1]).toBe(own()[1]);
    expect(layers()).toEqual(
      expect.arrayContaining([...before.filter((file) => file.startsWith('vda')), 'foreign.qcow2']),
    );
    expectIdle();
  });

  it('a layer that is gone: nothing is done', async () => {
    await writeAndRun();
    await writeAndRun();
    const [lowest] = layers().filter((file) => file.startsWith('vdb'));
    fs.renameSync(path.join(directory, lowest!), path.join(directory, 'away'));
    await expect(runOnce()).rejects.toThrow(/disk vdb .* is gone/);
    await expect(runOnce({ to: undefined, consolidate: 'blockcommit' })).rejects.toThrow(/is gone/);
    fs.renameSync(path.join(directory, 'away'), path.join(directory, lowest!));
    await writeAndRun({ consolidate: 'blockcommit' });
    expect(layers()).toEqual([]);
  });

  it('a disk of another size needs a full copy', async () => {
    await writeAndRun();
    await libvirt.virsh.call('blockresize', [
      '--domain',
      domain.uuid,
      '--path',
      'vda',
      '--size',
      `${8 * MIB}B`,
    ]);
    await expect(runOnce()).rejects.toMatchObject({
      message: expect.stringContaining(`resized from ${4 * MIB} to ${8 * MIB} bytes`),
      hint: expect.stringContaining('--full'),
    });
    const contents = await writeAndRun({ full: true });
    expect((await restored('2', 'vda')).equals(contents.vda!)).toBe(true);
    expect(contents.vda).toHaveLength(8 * MIB);
  });

  it('a transient VM is refused', async () => {
    const file = path.join(directory, 'own.qcow2.raw');
    await makeImage(file, 'raw', MIB, 1);
    const disk = { target: 'vda', path: file, format: 'raw' };
    const transient = await libvirt.define(`${domain.name}-t`, [disk], { transient: true });
    try {
      await expect(runOnce({ name: transient.name })).rejects.toThrow(/is transient/);
    } finally {
      await libvirt.remove(transient);
    }
  });

  it('a session of another command is left alone', async () => {
    fs.mkdirSync(state.session(domain.name), { recursive: true });
    const { Journal } = await import('../../src/session/journal.js');
    const journal = new Journal(state.journal(domain.name));
    journal.intend('mount', {});
    journal.close();
    await expect(runOnce()).rejects.toMatchObject({
      kind: 'locked',
      hint: expect.stringContaining('cleanup'),
    });
    expect(copies()).toEqual([]);
  });
});

describe('what became of the copies', () => {
  it('one that is missing or altered is noticed before anything is done', async () => {
    await writeAndRun();
    await writeAndRun();
    const files = [1, 2].map((number) => path.join(chain, `vda.000${number}.qcow2`)) as [string, string];
    const before = layers();
    // Only its time is another.
    fs.utimesSync(files[0], 1, 1);
    await writeAndRun();
    fs.renameSync(files[0], `${files[0]}.away`);
    await expect(runOnce()).rejects.toMatchObject({
      kind: 'integrity',
      hint: expect.stringContaining('--full'),
    });
    await expect(restored('latest', 'vda')).rejects.toThrow(/vda.0001.qcow2 is missing/);
    fs.renameSync(`${files[0]}.away`, files[0]);
    const handle = fs.openSync(files[1], 'r+');
    fs.writeSync(handle, 'altered', fs.fstatSync(handle).size - 7);
    fs.closeSync(handle);
    await expect(runOnce()).rejects.toThrow(/vda.0002.qcow2 is not as it was made/);
    await expect(restored('2', 'vda')).rejects.toMatchObject({ kind: 'integrity' });
    await restored('1', 'vda');
    expect(layers()).toHaveLength(before.length + 2);
    const contents = await writeAndRun({ full: true });
    expect((await restored('4', 'vda')).equals(contents.vda!)).toBe(true);
  });

  it('another directory, or a lost state, needs a full copy', async () => {
    await writeAndRun();
    const other = `${to}-other`;
    await expect(runOnce({ to: other })).rejects.toMatchObject({
      message: expect.stringContaining(chain),
      hint: expect.stringContaining('--full'),
    });
    fs.rmSync(liveChainFile(state, domain.name));
    await expect(runOnce()).rejects.toThrow(/nothing is known here of the layers/);
    const contents = await writeAndRun({ full: true });
    expect((await restored('2', 'vdb')).equals(contents.vdb!)).toBe(true);
    // The first layers are not known to be ours, and stay.
    await runOnce({ to: undefined, consolidate: 'blockcommit' });
    expect(layers()).toHaveLength(2);
  });

  it('a copy whose header names another file is not opened', async () => {
    await writeAndRun();
    await writeAndRun();
    const secret = path.join(directory, 'secret');
    fs.writeFileSync(secret, Buffer.alloc(4 * MIB, 's'));
    const file = path.join(chain, 'vda.0002.qcow2');
    await run('qemu-img', ['rebase', '-u', '-f', 'qcow2', '-F', 'raw', '-b', secret, file]);
    const record = openChain(chain);
    const { size, mtimeMs: mtime } = fs.statSync(file);
    const { stdout } = await run('sha256sum', [file]);
    const point = choosePoint(record, 'latest');
    const [vda, vdb] = point.disks;
    const forged = { ...vda!, size, mtime, sha256: stdout.slice(0, 64) };
    const points = [record.points[0]!, { ...point, disks: [forged, vdb!] }];
    fs.writeFileSync(path.join(chain, 'chain.json'), JSON.stringify({ ...record, points }));
    await expect(restored('latest', 'vda')).rejects.toThrow(/does not lie on vda.0001.qcow2/);
  });
});
