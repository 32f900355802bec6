import * as fs from 'node:fs';
import * as path from 'node:path';
import { describe, expect, it } from 'vitest';
import { openChain } from '../../src/chain/restore-point.js';
import { readChain } from '../../src/image/chain.js';
import { silentReporter } from '../../src/report/reporter.js';
import {
  type Contents,
  chain,
  contentsNow,
  directory,
  domain,
  expectIdle,
  expectPoints,
  layers,
  libvirt,
  own,
  pathsAtNextStart,
  pathsNow,
  reporter,
  restored,
  runOnce,
  to,
  useChainVm,
  write,
  writeAndRun,
} from './chain-vm.js';

useChainVm();

async function chainOf(file: string): Promise<string[]> {
  const image = { path: file, format: 'qcow2', inUse: true };
  return (await readChain(image, { reporter: silentReporter })).map((layer) => path.basename(layer.path));
}

describe('runs one after the other', () => {
  it('each adds a layer to the VM and a point that can be restored', async () => {
    const points: Contents[] = [];
    for (let run = 0; run < 3; run++) points.push(await writeAndRun());
    await write();
    expect(layers()).toHaveLength(6);
    await expectPoints(points);
    expectIdle();
    expect(await pathsAtNextStart()).toEqual(await pathsNow());
    expect(await chainOf(path.join(chain, 'vda.0003.qcow2'))).toEqual([
      'vda.0003.qcow2',
      'vda.0002.qcow2',
      'vda.0001.qcow2',
    ]);
    // A later copy has what was written, and not the disk.
    const [first, second] = openChain(chain).points.map(({ disks }) => disks[0]!.size);
    expect(second!).toBeLessThan(first! / 4);
    expect(fs.statSync(path.join(chain, 'vda.0001.qcow2')).mode & 0o777).toBe(0o600);
  });

  it('go on when the VM was shut off and started between', async () => {
    const points = [await writeAndRun()];
    await libvirt.killQemu(domain);
    await expect(runOnce()).rejects.toThrow(/is shut off: only a running or paused VM/);
    await libvirt.virsh.start(domain.uuid);
    points.push(await writeAndRun(), await writeAndRun({ consolidate: 'blockcommit' }));
    await libvirt.killQemu(domain);
    await libvirt.virsh.start(domain.uuid);
    points.push(await writeAndRun());
    await expectPoints(points);
    expectIdle();
  });

  it('copy everything again with --full, and leave the points before', async () => {
    const points = [
      await writeAndRun(),
      await writeAndRun(),
      await writeAndRun({ full: true }),
      await writeAndRun(),
    ];
    await expectPoints(points);
    expect(await chainOf(path.join(chain, 'vdb.0004.qcow2'))).toEqual(['vdb.0004.qcow2', 'vdb.0003.qcow2']);
    // They are still ours, and are merged.
    await runOnce({ to: undefined, consolidate: 'blockcommit' });
    expect(layers()).toEqual([]);
  });

  it('leave out a disk, and take it in later', async () => {
    const points = [
      await writeAndRun({ exclude: ['vdb'] }),
      await writeAndRun(),
      await writeAndRun({ exclude: ['vdb'] }),
    ];
    points.push(await writeAndRun());
    const { points: known } = openChain(chain);
    expect(known.map(({ disks }) => disks.map(({ target, backing }) => `${target} ${backing}`))).toEqual([
      ['vda null'],
      ['vda vda.0001.qcow2', 'vdb null'],
      ['vda vda.0002.qcow2'],
      ['vda vda.0003.qcow2', 'vdb vdb.0002.qcow2'],
    ]);
    for (const target of ['vda', 'vdb']) {
      expect((await restored('4', target)).equals(points[3]![target]!), target).toBe(true);
    }
    expect((await restored('3', 'vda')).equals(points[2]!.vda!)).toBe(true);
  });
});

describe.each(['blockcommit', 'blockpull'] as const)('merging by %s', (method) => {
  async function expectMerged(): Promise<void> {
    if (method === 'blockcommit') {
      expect(await pathsNow()).toEqual(own());
      expect(await pathsAtNextStart()).toEqual(own());
      expect(layers()).toEqual([]);
    } else {
      expect(layers()).toHaveLength(2);
      const [vda] = await pathsNow();
      expect(await chainOf(vda!)).toEqual([path.basename(vda!), 'vda.qcow2', 'own.qcow2']);
    }
    expect(fs.readdirSync(directory)).toContain('own.qcow2');
    expect((await chainOf(own()[0]!)).at(-1)).toBe('own.qcow2');
    expectIdle();
  }

  it('after the copies, and with the next ones', async () => {
    const points = [await writeAndRun(), await writeAndRun({ consolidate: method })];
    await expectMerged();
    points.push(await writeAndRun(), await writeAndRun(), await writeAndRun({ consolidate: method }));
    await expectMerged();
    points.push(await writeAndRun());
    await expectPoints(points);
  });

  it('but not what is excluded: that goes on as it was, and can be merged later', async () => {
    const points = [await writeAndRun(), await writeAndRun()];
    points.push(await writeAndRun({ consolidate: method, exclude: ['vdb'] }));
    const files = layers();
    const vdb = files.filter((file) => file.startsWith('vdb'));
    expect(vdb).toHaveLength(2);
    expect(files).toHaveLength(method === 'blockcommit' ? 2 : 3);
    const before = await contentsNow();
    await runOnce({ to: undefined, consolidate: method, exclude: ['vdb'] });
    expect(layers()).toEqual(files);
    expect(await contentsNow()).toEqual(before);
    points.push(await writeAndRun(), await writeAndRun({ consolidate: method }));
    await expectMerged();
    for (const [index, contents] of points.entries()) {
      const targets = index === 2 ? ['vda'] : ['vda', 'vdb'];
      for (const target of targets)
        expect((await restored(String(index + 1), target)).equals(contents[target]!), target).toBe(true);
    }
  });

  it('without a copy: what was not copied yet is in the next point', async () => {
    const points = [await writeAndRun(), await writeAndRun()];
    await write();
    const before = await contentsNow();
    const { merged, point } = await runOnce({ to: undefined, consolidate: method });
    expect(point).toBeNull();
    expect(merged).toHaveLength(method === 'blockcommit' ? 4 : 2);
    await expectMerged();
    const now = await contentsNow();
    for (const [target, content] of Object.entries(before))
      expect(now[target]!.equals(content), target).toBe(true);
    const at = fs.statSync(path.join(chain, 'chain.json')).mtimeMs;
    points.push(await writeAndRun(), await writeAndRun());
    await expectPoints(points);
    expect(fs.statSync(path.join(chain, 'chain.json')).mtimeMs).toBeGreaterThan(at);
    // What did not change is not copied again.
    if (method === 'blockcommit') {
      const [full, , third] = openChain(chain).points.map(({ disks }) => disks[0]!.size);
      expect(third!).toBeLessThan(full! / 3);
    }
  });
});

it('a list of excluded disks for several VMs may name those of the others', async () => {
  await writeAndRun({ exclude: ['vdb', 'vdz'], amongOthers: true });
  expect(openChain(chain).points[0]!.disks.map(({ target }) => target)).toEqual(['vda']);
  const merge = { to: undefined, consolidate: 'blockcommit', exclude: ['vdz'] } as const;
  await expect(runOnce(merge)).rejects.toThrow(/has no disk vdz to exclude/);
  expect((await runOnce({ ...merge, amongOthers: true })).merged).toHaveLength(1);
});

it('merges nothing where nothing is ours', async () => {
  const result = await runOnce({ to: undefined, consolidate: 'blockcommit' });
  expect(result.merged).toEqual([]);
  expect(reporter.messages.join('\n')).toContain('has no layers of ours');
  expect(fs.existsSync(to)).toBe(false);
});
