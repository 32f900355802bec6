import * as fs from 'node:fs';
import * as path from 'node:path';
import { afterEach, describe, expect, it } from 'vitest';
import { type ChainRecord, newChainRecord, writeChainRecord } from '../../src/chain/chain-record.js';
import { liveChainFile, readLiveChain } from '../../src/chain/live-chain.js';
import { pullUndo } from '../../src/chain/pull-layers.js';
import { choosePoint, openChain, restorePoint } from '../../src/chain/restore-point.js';
import type { ProgressTask } from '../../src/report/reporter.js';
import { Journal } from '../../src/session/journal.js';
import { programFirst } from '../support/dumps.js';
import { loopDevices, withLoopDevice } from '../support/images.js';
import { requireAll, root } from '../support/requirements.js';
import { RecordingReporter } from '../support/snapshot-session.js';
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
  reporter,
  runOnce,
  state,
  useChainVm,
  write,
  writeAndRun,
} from './chain-vm.js';

useChainVm();

const { PATH } = process.env;
afterEach(() => {
  process.env.PATH = PATH;
});

/** Does something when a piece of work begins, and when it has ended. */
class MeddlingReporter extends RecordingReporter {
  constructor(
    readonly label: string,
    readonly begins: () => void,
    readonly ends = () => {},
  ) {
    super();
  }

  override progress(label: string): ProgressTask {
    const task = super.progress(label);
    if (label !== this.label) return task;
    this.begins();
    return { advance: () => {}, end: this.ends };
  }
}

/** The VM's disks are as they were before the first run, and nothing was copied. */
async function expectNothing(found: readonly string[] = []): Promise<void> {
  expect(await pathsNow()).toEqual(own());
  expect(layers()).toEqual([]);
  expect(copies()).toEqual(found);
  expectIdle();
}

describe('no point is made', () => {
  it.each(['vda.0001.qcow2', '0001.xml'])('over a file %s that the chain does not know', async (name) => {
    fs.mkdirSync(chain, { recursive: true });
    fs.writeFileSync(path.join(chain, name), 'mine');
    await expect(runOnce()).rejects.toThrow(/is there already, and chain.json does not know it/);
    expect(fs.readFileSync(path.join(chain, name), 'utf8')).toBe('mine');
    await expectNothing([name]);
  });

  it('in the chain of another VM of the same name', async () => {
    fs.mkdirSync(chain, { recursive: true });
    const uuid = '11111111-2222-3333-4444-555555555555';
    const record: ChainRecord = newChainRecord(domain.name, uuid);
    writeChainRecord(chain, record);
    await expect(runOnce()).rejects.toThrow(`there is a chain of another VM called ${domain.name} already`);
    await expectNothing(['chain.json']);
  });

  it('of a disk that would be on another image at the next start', async () => {
    const args = ['--domain', domain.uuid, '--target', 'vdb', '--config'];
    await libvirt.virsh.call('detach-disk', args);
    await expect(runOnce()).rejects.toThrow(/definition has nothing there, while it runs on .*vdb.img/);
    await expectNothing();
  });

  it('of a disk on a block device', async () => {
    await requireAll(root, loopDevices);
    const image = path.join(directory, '..', `block ${domain.name}`);
    fs.writeFileSync(image, Buffer.alloc(MIB));
    await withLoopDevice(image, async (device) => {
      const disk = { target: 'vda', path: device, format: 'raw', type: 'block' } as const;
      const other = await libvirt.define(`${domain.name}-b`, [disk]);
      try {
        await expect(runOnce({ name: other.name })).rejects.toMatchObject({
          message: expect.stringContaining(`it is on the block device ${device}`),
          hint: expect.stringContaining('--exclude=vda'),
        });
      } finally {
        await libvirt.remove(other);
      }
    });
  });

  it('while an overlay stays that --keep-overlay left', async () => {
    const file = state.keptJournal(domain.name);
    fs.mkdirSync(path.dirname(file), { recursive: true });
    const journal = new Journal(file);
    journal.intend('overlay', {});
    journal.close();
    await expect(runOnce()).rejects.toMatchObject({
      message: expect.stringContaining('is on an overlay that --keep-overlay left'),
      hint: expect.stringContaining(`chunkmount cleanup --kept --vm=${domain.name}`),
    });
    await expectNothing();
  });

  it.each([
    ['that QEMU finds damaged', '[ "$1" != check ] || { echo broken >&2; exit 2; }', 'broken'],
    ['that does not lie on the one before', '[ "$1" != rebase ] || exit 0', 'instead of vda.0001.qcow2'],
  ])('of a copy %s', async (_, script, message) => {
    await writeAndRun();
    const [before, found] = [await pathsNow(), copies()];
    const program = `${script}\nexec /usr/bin/qemu-img "$@"`;
    process.env.PATH = programFirst(path.join(directory, '..', `bin ${domain.name}`), 'qemu-img', program);
    await expect(writeAndRun()).rejects.toThrow(message);
    expect(await pathsNow()).toEqual(before);
    expect(copies()).toEqual(found);
  });

  it('when the image below was written while it was copied', async () => {
    const [below] = ['own.qcow2'].map((name) => path.join(directory, name)) as [string];
    const meddle = () => fs.writeFileSync(below, fs.readFileSync(below));
    const meddling = new MeddlingReporter('summing up vda', meddle);
    await expect(writeAndRun({ reporter: meddling })).rejects.toThrow(/was written by another program/);
    await expectNothing();
  });

  it('when it is told to stop after the last copy', async () => {
    const stop = new AbortController();
    const { signal } = stop;
    const meddle = () => stop.abort(new Error('ended by SIGINT'));
    const meddling = new MeddlingReporter('summing up vdb', () => {}, meddle);
    await expect(writeAndRun({ reporter: meddling, signal })).rejects.toThrow('ended by SIGINT');
    await expectNothing();
  });
});

describe('what is restored', () => {
  const restore = (to: string, force: boolean, meddling = new RecordingReporter()) => {
    const record = openChain(chain);
    const copy = choosePoint(record, 'latest').disks[0]!;
    const common = { directory: chain, copy, to, format: 'raw', force } as const;
    return restorePoint({ ...common, reporter: meddling }, record);
  };

  it('does not replace what came to its place meanwhile, and leaves nothing', async () => {
    await writeAndRun();
    const to = path.join(directory, '..', `restored ${domain.name}`, 'vda.raw');
    fs.mkdirSync(path.dirname(to));
    const meddling = new MeddlingReporter('restoring vda', () => fs.writeFileSync(to, 'mine'));
    await expect(restore(to, false, meddling)).rejects.toThrow(`${to} exists already`);
    expect(fs.readFileSync(to, 'utf8')).toBe('mine');
    expect(fs.readdirSync(path.dirname(to))).toEqual(['vda.raw']);
  });

  it('does not replace an image that a VM runs on', async () => {
    await writeAndRun();
    for (const image of await pathsNow())
      await expect(restore(image!, true)).rejects.toThrow(`${image} is in use by a running VM`);
    await expect(restore(own()[0]!, true)).rejects.toThrow(/is being read, by a running VM/);
  });
});

describe('after a pull, a layer is removed', () => {
  /** As a session left it that was cut off after QEMU had pulled. */
  async function pulled(): Promise<{ lower: string; undo: () => Promise<void> }> {
    const only = { exclude: ['vdb'] };
    await writeAndRun(only);
    await writeAndRun(only);
    const liveFile = liveChainFile(state, domain.name);
    const [disk] = readLiveChain(liveFile)!.disks;
    const [lower, top] = disk!.layers;
    const base = disk!.base.path;
    const journal = new Journal(path.join(directory, '..', `journal ${domain.name}`));
    const { name, uuid } = domain;
    const common = { connect: libvirt.uri, domain: { name, uuid }, liveFile, target: 'vda' };
    const entry = journal.intend('chain-pull', { ...common, base, top: top!.path, lower: [lower!] });
    await libvirt.virsh.call('blockpull', ['--domain', uuid, '--path', 'vda', '--base', base, '--wait']);
    const undo = () => pullUndo['chain-pull'](entry, { journal, reporter }).finally(() => journal.close());
    return { lower: lower!.path, undo };
  }

  it('but not a file of its name that is another one', async () => {
    const { lower, undo } = await pulled();
    fs.renameSync(lower, `${lower}.away`);
    fs.writeFileSync(lower, 'mine');
    await expect(undo()).rejects.toThrow(`${lower} is not the file that was made as a layer`);
    expect(fs.readFileSync(lower, 'utf8')).toBe('mine');
  });

  it('but not one that another VM refers to', async () => {
    const { lower, undo } = await pulled();
    const disk = { target: 'vda', path: lower, format: 'qcow2' };
    const other = await libvirt.define(`${domain.name}-o`, [disk], { start: false });
    try {
      await expect(undo()).rejects.toThrow(`${other.name} still refers to ${lower}`);
      expect(fs.existsSync(lower)).toBe(true);
    } finally {
      await libvirt.remove(other);
    }
  });
});

describe('a disk that stays behind', () => {
  it('when the chain goes elsewhere is copied whole there', async () => {
    await writeAndRun();
    const other = `${path.dirname(chain)}-other`;
    await runOnce({ to: other, full: true, exclude: ['vdb'] });
    await write();
    await runOnce({ to: other });
    const disks = openChain(path.join(other, domain.name)).points.flatMap((point) => point.disks);
    expect(disks.map(({ file, backing }) => `${file} ${backing}`)).toEqual([
      'vda.0001.qcow2 null',
      'vda.0002.qcow2 vda.0001.qcow2',
      'vdb.0002.qcow2 null',
    ]);
  });
});
