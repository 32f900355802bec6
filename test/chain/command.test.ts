import * as fs from 'node:fs';
import * as path from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { TestChunkmount } from '../support/chunkmount.js';
import { diskBytes, imagesOf, programFirst } from '../support/dumps.js';
import { eventually, makeImage, type TestDomain, TestLibvirt } from '../support/libvirt.js';
import { build, requireAll } from '../support/requirements.js';
import { testBytes, writeTree } from '../support/trees.js';

const MIB = 1024 * 1024;

describe('chunkmount chain', () => {
  const chunkmount = new TestChunkmount();
  let libvirt: TestLibvirt;
  let mail01: TestDomain;
  const vda = chunkmount.path('vda.qcow2');
  const vdb = chunkmount.path('vdb.img');
  const to = chunkmount.path('chains');
  const chain = path.join(to, 'mail01');
  const connect = () => `--connect=${libvirt.uri}`;
  const run = (...args: string[]) =>
    chunkmount.run(['chain', '--vm=mail01', `--to=${to}`, connect(), ...args]);
  const layers = () => fs.readdirSync(chunkmount.directory).filter((name) => name.includes('.cm-'));

  beforeAll(async () => {
    await requireAll(build);
    libvirt = await TestLibvirt.start();
    await makeImage(vda, 'qcow2', 4 * MIB, 0x11);
    await makeImage(vdb, 'raw', 2 * MIB, 0x12);
    mail01 = await libvirt.define('mail01', [
      { target: 'vda', path: vda, format: 'qcow2' },
      { target: 'vdb', path: vdb, format: 'raw' },
    ]);
  });

  afterAll(async () => {
    await chunkmount.close();
    await libvirt?.close();
  });

  it('copies, lists and restores points', async () => {
    const before = await diskBytes(vda, 'qcow2');
    const first = await run();
    const names = ['vda.0001.qcow2', 'vdb.0001.qcow2'];
    expect(first).toMatchObject({
      exitCode: 0,
      stdout: names.map((name) => `${path.join(chain, name)}\n`).join(''),
      stderr: expect.stringContaining('copied to'),
    });
    // The VM is on the layer above it, and will be when it runs again.
    const tree = chunkmount.path('tree');
    writeTree(tree, {
      name: 'mail01',
      disks: [{ target: 'vda', content: testBytes(MIB, 1), chunkSize: 65536 }],
    });
    for (const part of [vda, ...layers().map((name) => chunkmount.path(name))]) {
      for (const args of [
        ['chain', 'restore', chain, '--disk=vda'],
        ['restore', tree, '--disk=vda'],
      ])
        expect(await chunkmount.run([...args, `--to=${part}`, '--force'])).toMatchObject({
          exitCode: 1,
          stderr: expect.stringMatching(/put the VM onto layers[\s\S]*--consolidate-only --vm=mail01/),
        });
    }
    await libvirt.guestWrite(mail01, 'vda', { offset: MIB, length: 65536, pattern: 0x22 });
    const second = await run('--json', '--consolidate');
    const [result] = JSON.parse(second.stdout).chains;
    expect(result).toMatchObject({ name: 'mail01', point: { number: 2, consistency: 'crash' } });
    expect(result.merged).toHaveLength(4);
    expect(layers()).toEqual([]);
    expect(await imagesOf(libvirt, 'mail01')).toEqual([vda, vdb]);

    const list = await chunkmount.succeed('chain', 'list', chain);
    expect(list.split('\n').map((line) => line.split('\t')[0])).toEqual(['1', '2', '']);
    const restore = ['chain', 'restore', chain, '--disk=vda'];
    const image = chunkmount.path('restored.qcow2');
    expect(await chunkmount.succeed(...restore, '--at=1', `--to=${image}`)).toBe(`${image}\n`);
    expect((await diskBytes(image, 'qcow2')).equals(before)).toBe(true);
    const again = await chunkmount.run([...restore, `--to=${image}`]);
    expect(again).toMatchObject({ exitCode: 1, stderr: expect.stringContaining('--force') });
    await chunkmount.succeed(...restore, `--to=${image}`, '--force');
    expect((await diskBytes(image, 'qcow2')).equals(await diskBytes(vda, 'qcow2'))).toBe(true);
    const directory = chunkmount.path('all/');
    await chunkmount.succeed('chain', 'restore', chain, `--to=${directory}`);
    expect(fs.readFileSync(`${directory}vdb.raw`).equals(fs.readFileSync(vdb))).toBe(true);
    expect(fs.statSync(`${directory}vda.raw`).mode & 0o777).toBe(0o600);
  });

  it.each<[string, string[], number, RegExp]>([
    ['nowhere to copy to', ['--vm=mail01'], 2, /where the copies go[\s\S]*--to=DIR/],
    ['no VM', ['--to=/x'], 2, /nothing to back up was named/],
    ['a copy that is none', ['--vm=mail01', '--consolidate-only', '--full'], 2, /copies nothing/],
    ['an unknown method', ['--vm=mail01', '--to=/x', '--method=magic'], 2, /blockcommit, blockpull/],
    ['an unknown action', ['remove', '/x'], 2, /restore, list/],
    ['a restore without a chain', ['restore', '--to=/x'], 2, /needs the directory/],
    ['a restore to nowhere', ['restore', chain], 2, /where to restore to/],
    ['a restore of two disks to a file', ['restore', chain, '--to=/x'], 2, /cannot go into one file/],
    ['a point that is not there', ['restore', chain, '--to=/x', '--at=9'], 2, /points 1 to 2/],
    [
      'a disk that is not there',
      ['restore', chain, '--to=/x', '--disk=vdz'],
      2,
      /has no disk vdz[\s\S]*vda, vdb/,
    ],
    ['a directory that is no chain', ['list', '/'], 1, /holds no chain/],
    ['a list of a VM', ['list', chain, '--vm=mail01'], 2, /chain list does not take --vm/],
  ])('refuses %s', async (_, args, exitCode, message) => {
    const told = await chunkmount.run(['chain', ...args]);
    expect(told).toMatchObject({ exitCode, stdout: '', stderr: expect.stringMatching(message) });
  });

  it('tells a missing copy and a mounted VM by its exit code, and does nothing then', async () => {
    const copy = path.join(chain, 'vda.0001.qcow2');
    fs.renameSync(copy, `${copy}.away`);
    expect(await run()).toMatchObject({ exitCode: 4, stderr: expect.stringContaining('--full') });
    const restore = await chunkmount.run([
      'chain',
      'restore',
      chain,
      '--disk=vda',
      `--to=${chunkmount.path('x')}`,
    ]);
    expect(restore.exitCode).toBe(4);
    fs.renameSync(`${copy}.away`, copy);
    await chunkmount.succeed('mount', '--vm=mail01', connect());
    expect(await run()).toMatchObject({ exitCode: 3, stderr: expect.stringContaining('cleanup') });
    await chunkmount.succeed('cleanup', '--vm=mail01');
    expect(layers()).toEqual([]);
    const several = await chunkmount.run(['chain', '--vm=nosuch,mail01', `--to=${to}`, connect()]);
    expect(several).toMatchObject({ exitCode: 5, stderr: expect.stringContaining('nosuch') });
  });

  it.each(['cleanup', 'the next run'])('killed while it copies: %s mends it', async (way) => {
    const points = () => JSON.parse(fs.readFileSync(path.join(chain, 'chain.json'), 'utf8')).points.length;
    const count = points();
    const on = await imagesOf(libvirt, 'mail01');
    const script = 'case "$1" in rebase) exec sleep 600;; *) exec /usr/bin/qemu-img "$@";; esac';
    const PATH = programFirst(chunkmount.path(`bin ${way}`), 'qemu-img', script);
    const running = chunkmount.start(['chain', '--vm=mail01', `--to=${to}`, connect()], { PATH });
    const parts = () => fs.readdirSync(chain).filter((name) => name.endsWith('.part'));
    await eventually(async () => parts().length > 0);
    running.kill('SIGKILL');
    await running;
    const write = { offset: 2 * MIB, length: 65536, pattern: 0x33 };
    await libvirt.guestWrite(mail01, 'vda', write);
    if (way === 'cleanup') {
      await chunkmount.succeed('cleanup', '--vm=mail01');
      expect(await imagesOf(libvirt, 'mail01')).toEqual(on);
      expect(points()).toBe(count);
    } else {
      expect((await run()).exitCode).toBe(0);
      expect(points()).toBe(count + 1);
    }
    expect(parts()).toEqual([]);
    await libvirt.guestVerify(mail01, 'vda', write);
    expect(fs.readdirSync(path.join(chunkmount.stateDirectory, 'sessions'))).toEqual([]);
  });

  it('leaves a disk that is excluded as it is, also when it merges', async () => {
    await run();
    const [top] = await imagesOf(libvirt, 'mail01');
    const before = layers().length;
    const result = await run('--json', '--consolidate', '--exclude=vda');
    const [{ merged, point }] = JSON.parse(result.stdout).chains;
    expect(point.disks.map(({ target }: { target: string }) => target)).toEqual(['vdb']);
    expect(merged).toHaveLength(before / 2 + 1);
    expect(await imagesOf(libvirt, 'mail01')).toEqual([top, vdb]);
    const merging = ['chain', '--vm=mail01', '--consolidate-only', connect()];
    expect(await chunkmount.run([...merging, '--exclude=vdz'])).toMatchObject({
      exitCode: 2,
      stderr: expect.stringContaining('mail01 has no disk vdz to exclude'),
    });
    await chunkmount.succeed(...merging, '--exclude=vda');
    expect(await imagesOf(libvirt, 'mail01')).toEqual([top, vdb]);
    await chunkmount.succeed(...merging, '--exclude=vdb');
    expect(await imagesOf(libvirt, 'mail01')).toEqual([vda, vdb]);
  });

  it('refuses options that it would ignore before it does anything to a VM', async () => {
    const points = fs.readdirSync(chain);
    for (const option of ['--disk=vda', '--at=1', '--force', '--format=raw', '--method=blockpull'])
      expect(await run(option), option).toMatchObject({ exitCode: 2, stdout: '' });
    expect(await imagesOf(libvirt, 'mail01')).toEqual([vda, vdb]);
    expect(fs.readdirSync(chain)).toEqual(points);
  });

  it('merges alone, by either method', async () => {
    await run();
    const pull = await chunkmount.run([
      'chain',
      '--vm=mail01',
      '--consolidate-only',
      '--method=blockpull',
      connect(),
    ]);
    expect(pull).toMatchObject({ exitCode: 0, stdout: '' });
    expect(layers()).toHaveLength(2);
    await chunkmount.succeed('chain', '--vm=mail01', '--consolidate-only', connect());
    expect(await imagesOf(libvirt, 'mail01')).toEqual([vda, vdb]);
    expect(layers()).toEqual([]);
  });
});
