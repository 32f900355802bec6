import * as fs from 'node:fs';
import * as path from 'node:path';
import { execa } from 'execa';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { mountAt } from '../../src/host/mountinfo.js';
import { loadDomain } from '../../src/libvirt/load-domain.js';
import { chunksAmong, rsync, TestChunkmount } from '../support/chunkmount.js';
import { makeImage, type TestDomain, TestLibvirt, writePattern } from '../support/libvirt.js';

const CHUNK = 256 * 1024;
const MIB = 1024 * 1024;

/** The whole job, on a running VM with two disks, in order: each step builds on the one before. */
describe('from a running VM to a mounted tree, into rsync, and back', () => {
  const chunkmount = new TestChunkmount();
  let libvirt: TestLibvirt;
  let domain: TestDomain;
  const vda = chunkmount.path('vda.qcow2');
  const vdb = chunkmount.path('vdb.img');
  const tree = chunkmount.tree('mail01');
  const copy = chunkmount.path('copy');
  const connect = () => `--connect=${libvirt.uri}`;

  async function sources(): Promise<(string | undefined)[]> {
    return (await loadDomain(libvirt.virsh, 'mail01')).disks.map((disk) => disk.path);
  }

  /** The disk's bytes by QEMU's own account, of an image that may be in use. */
  async function content(image: string, format: string): Promise<string> {
    const raw = chunkmount.path('content.raw');
    await execa('qemu-img', ['convert', '-U', '-f', format, '-O', 'raw', image, raw]);
    return (await execa('sha256sum', [raw])).stdout.split(' ')[0]!;
  }

  async function sha256(file: string): Promise<string> {
    return (await execa('sha256sum', [file])).stdout.split(' ')[0]!;
  }

  beforeAll(async () => {
    libvirt = await TestLibvirt.start();
    await makeImage(vda, 'qcow2', 20 * MIB);
    await writePattern(vda, 'qcow2', { offset: 0, length: 5 * MIB, pattern: 0x11 });
    await writePattern(vda, 'qcow2', { offset: 12 * MIB + 4096, length: 512, pattern: 0x22 });
    await makeImage(vdb, 'raw', 3 * MIB + 512, 0x33);
    domain = await libvirt.define('mail01', [
      { target: 'vda', path: vda, format: 'qcow2' },
      { target: 'vdb', path: vdb, format: 'raw' },
    ]);
  });

  afterAll(async () => {
    await chunkmount.close();
    await libvirt?.close();
  });

  let before: { vda: string; vdb: string };

  it('mounts both disks at one point in time, and prints the mountpoint', async () => {
    before = { vda: await content(vda, 'qcow2'), vdb: await content(vdb, 'raw') };
    expect(await chunkmount.succeed('--vm=mail01', connect())).toBe(`${tree}\n`);
    expect((await sources()).every((source) => source !== vda && source !== vdb)).toBe(true);
    expect(fs.readdirSync(tree).sort()).toEqual([
      'mail01.xml',
      'manifest.json',
      'vda',
      'vda.xxh64',
      'vdb',
      'vdb.xxh64',
    ]);
  });

  it('shows a manifest that is newer than every chunk and not from the future', () => {
    const manifest = JSON.parse(fs.readFileSync(path.join(tree, 'manifest.json'), 'utf8'));
    expect(manifest).toMatchObject({
      format: 'chunkmount-tree',
      version: 1,
      name: 'mail01',
      consistency: 'crash',
      uuid: domain.uuid,
    });
    const newest = fs.statSync(path.join(tree, 'manifest.json')).mtimeMs;
    expect(newest).toBeLessThanOrEqual(Date.now());
    for (const disk of ['vda', 'vdb']) {
      const directory = path.join(tree, disk, '000000');
      for (const chunk of fs.readdirSync(directory)) {
        expect(fs.statSync(path.join(directory, chunk)).mtimeMs).toBeLessThan(newest);
      }
    }
  });

  it('keeps the tree as it is while the guest goes on writing', async () => {
    await libvirt.guestWrite(domain, 'vda', { offset: 1 * MIB, length: 64 * 1024, pattern: 0x44 });
    await libvirt.guestWrite(domain, 'vdb', { offset: 2 * MIB, length: 4096, pattern: 0x55 });
    await rsync(tree, copy);
    const { exitCode } = await execa('xxhsum', ['--quiet', '-c', 'vda.xxh64', 'vdb.xxh64'], { cwd: copy });
    expect(exitCode).toBe(0);
  });

  it('restores both disks, byte for byte, as they were at snapshot time', async () => {
    for (const [disk, sum] of Object.entries(before)) {
      const image = chunkmount.path(`${disk}.restored`);
      await chunkmount.succeed('restore', copy, `--disk=${disk}`, `--to=${image}`);
      expect(await sha256(image)).toBe(sum);
    }
    await chunkmount.succeed('verify', copy);
  });

  it('gives the domain its original files back, with what the guest wrote meanwhile', async () => {
    await chunkmount.succeed('cleanup', '--vm=mail01');
    expect(await sources()).toEqual([vda, vdb]);
    expect(fs.readdirSync(chunkmount.directory).filter((name) => name.includes('.cm-'))).toEqual([]);
    expect(mountAt(tree)).toBeUndefined();
    expect(fs.existsSync(tree)).toBe(false);
    await libvirt.guestVerify(domain, 'vda', { offset: 1 * MIB, length: 64 * 1024, pattern: 0x44 });
    await libvirt.guestVerify(domain, 'vdb', { offset: 2 * MIB, length: 4096, pattern: 0x55 });
  });

  it('sends exactly the chunks that the guest wrote, the next time', async () => {
    await chunkmount.succeed('--vm=mail01', connect());
    const { files, literalBytes } = await rsync(tree, copy);
    expect(chunksAmong(files)).toEqual(['vda/000000/00000004', 'vdb/000000/00000008']);
    expect(literalBytes).toBeLessThan(3 * CHUNK);
    await chunkmount.succeed('cleanup', '--vm=mail01');
  });

  it('sends nothing when nothing was written', async () => {
    await chunkmount.succeed('--vm=mail01', connect());
    expect(chunksAmong((await rsync(tree, copy)).files)).toEqual([]);
    await chunkmount.succeed('cleanup', '--vm=mail01');
    expect(await sources()).toEqual([vda, vdb]);
  });
});
