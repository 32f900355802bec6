import * as fs from 'node:fs';
import { afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import type { Estimate } from '../../src/backup/estimate.js';
import { makeImage, TestLibvirt } from '../support/libvirt.js';
import { fuseDevice, program, requireAll, root } from '../support/requirements.js';
import { CHUNK, CHUNKS, SIZE, TrackedDisk } from './tracked-disk.js';

/** 70 chunks of which 10 are holes; the last one is short. */
const DATA = SIZE - 10 * CHUNK;

describe('estimate', () => {
  let disk: TrackedDisk;

  beforeAll(() => requireAll(root, fuseDevice, program('qemu-img', 'qemu-utils')));
  beforeEach(() => {
    disk = new TrackedDisk();
  });
  afterEach(() => disk.close());

  async function estimated(...options: string[]) {
    const args = ['estimate', ...disk.given(...options).filter((option) => option !== '--debug'), '--json'];
    const { exitCode, stdout, stderr } = await disk.chunkmount.run(args, disk.clock());
    expect({ exitCode, stderr }).toEqual({ exitCode: 0, stderr: '' });
    const { estimates } = JSON.parse(stdout) as { estimates: Estimate[] };
    expect(estimates.map(({ name }) => name)).toEqual(['demo']);
    return estimates[0]!.disks[0]!;
  }

  it('tells what the next session will read, and the backup send', async () => {
    const always = { target: 'disk0', size: SIZE, data: DATA, sums: CHUNKS * 40 };
    expect(await estimated()).toEqual({
      ...always,
      read: DATA,
      send: { least: SIZE, most: SIZE },
      tracker: null,
      reason: expect.stringContaining('no record'),
    });
    expect(fs.existsSync(disk.chunkmount.stateDirectory)).toBe(false);
    const first = await disk.good();
    expect(first.bytesRead).toBe(DATA);

    const still = await estimated('--audit=100%');
    expect(still).toMatchObject({
      ...always,
      send: { least: 0, most: 0 },
      sums: 0,
      tracker: 'still',
      reason: null,
    });
    const { bytesRead, sumsStat } = await disk.good(['--audit=100%']);
    expect(Math.abs(still.read - bytesRead)).toBeLessThanOrEqual(CHUNK);
    expect(sumsStat).toBe(first.sumsStat);

    disk.change(3);
    expect(await estimated()).toMatchObject({
      read: DATA,
      send: { least: 0, most: SIZE },
      tracker: null,
      reason: expect.stringContaining('was written'),
    });
    const args = ['estimate', ...disk.given('--chunk-size=8K')];
    const { stdout } = await disk.chunkmount.run(args, disk.clock());
    expect(stdout).toMatch(
      /^demo disk0: reads 237 KiB of 277 KiB, sends 277 KiB of chunks and .* of sums \(all/,
    );
  });

  it('tells that of a VM that runs, and leaves it as it is', async () => {
    const libvirt = await TestLibvirt.start();
    try {
      const vda = disk.chunkmount.path('vda.qcow2');
      await makeImage(vda, 'qcow2', 1024 * 1024, 0x11);
      const vdb = disk.chunkmount.path('vdb.raw');
      await makeImage(vdb, 'raw', 1024 * 1024, 0x22);
      await libvirt.define('mail01', [
        { target: 'vda', path: vda, format: 'qcow2' },
        { target: 'vdb', path: vdb, format: 'raw' },
      ]);
      const before = await libvirt.virsh.dumpXml('mail01');
      const args = ['estimate', '--vm=mail01', `--connect=${libvirt.uri}`, '--json'];
      const { estimates } = JSON.parse(await disk.chunkmount.succeed(...args)) as { estimates: Estimate[] };
      const reason = expect.stringContaining('no record');
      expect(estimates[0]!.disks).toMatchObject([
        { target: 'vda', size: 1024 * 1024, tracker: null, reason },
        { target: 'vdb', size: 1024 * 1024, tracker: null, reason },
      ]);
      expect(await libvirt.virsh.dumpXml('mail01')).toBe(before);
      const failed = await disk.chunkmount.run([...args, '--exclude=vdc']);
      expect(failed).toMatchObject({ exitCode: 2, stderr: expect.stringContaining('has no disk vdc') });
    } finally {
      await libvirt.close();
    }
  });
});
