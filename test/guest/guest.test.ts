import { createHash } from 'node:crypto';
import * as fs from 'node:fs';
import * as path from 'node:path';
import { execa } from 'execa';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { TestChunkmount } from '../support/chunkmount.js';
import { TestLibvirt } from '../support/libvirt.js';
import { build, program, requireAll } from '../support/requirements.js';
import { TestGuest } from './test-guest.js';

/** A guest that writes files while it is backed up: what it was told is on the disk is in the backup. In order. */
describe('a Linux guest that writes', () => {
  const chunkmount = new TestChunkmount();
  /** While its file systems are frozen, and just so. */
  const quiesced = chunkmount.path('quiesced');
  const crashed = chunkmount.path('crashed');
  const storage = chunkmount.path('storage');
  let libvirt: TestLibvirt;
  let guest: TestGuest;
  let syncedBefore: { quiesced: number; crashed: number };
  const connect = () => `--connect=${libvirt.uri}`;

  beforeAll(async () => {
    await requireAll(
      build,
      program('qemu-ga', 'qemu-guest-agent'),
      program('busybox', 'busybox-static'),
      program('e2fsck', 'e2fsprogs'),
      program('xxhsum', 'xxhash'),
    );
    // What is mounted in there is seen by libvirtd and QEMU, too.
    fs.mkdirSync(storage);
    await execa('mount', ['--bind', storage, storage]);
    await execa('mount', ['--make-shared', storage]);
    libvirt = await TestLibvirt.start();
    guest = await TestGuest.start(libvirt, 'writer', chunkmount.directory);
    await guest.writesMore(1);
  });

  afterAll(async () => {
    // If it is still there, the last test failed.
    await chunkmount.run(['boot', '--discard', 'writer']);
    await libvirt?.close();
    await execa('umount', [storage], { reject: false });
    await chunkmount.close();
  });

  async function backUp(copy: string, ...options: string[]): Promise<number> {
    await guest.writesMore(10);
    const synced = guest.synced();
    const command = ['sh', '-c', `rsync -a "$CHUNKMOUNT_TREE/" '${copy}/'`];
    await chunkmount.succeed('run', '--vm=writer', connect(), ...options, '--', ...command);
    // It goes on writing on its own disk.
    await guest.writesMore(3);
    return synced;
  }

  it('is backed up with and without its agent while it goes on', async () => {
    await guest.agentAnswers();
    syncedBefore = {
      quiesced: await backUp(quiesced, '--quiesce=require'),
      crashed: await backUp(crashed),
    };
    const consistency = [quiesced, crashed].map(
      (copy) => JSON.parse(fs.readFileSync(path.join(copy, 'manifest.json'), 'utf8')).consistency,
    );
    expect(consistency).toEqual(['filesystem', 'crash']);
  });

  async function restore(copy: string): Promise<string> {
    const image = `${copy}.raw`;
    await chunkmount.succeed('restore', copy, '--disk=vda', `--to=${image}`);
    return image;
  }

  async function needsRecovery(image: string): Promise<boolean> {
    const { stdout } = await execa('dumpe2fs', ['-h', image]);
    return /^Filesystem features:.* needs_recovery/m.test(stdout);
  }

  /** Throws unless the file system is whole. It is only looked at. */
  const check = (image: string) => execa('e2fsck', ['-f', '-n', image]);

  /** How many files of the log are in the image as they were written; throws when one is not. */
  async function wholeFiles(image: string): Promise<number> {
    const directory = fs.mkdtempSync(chunkmount.path('files-'));
    await execa('debugfs', ['-R', `rdump /data ${directory}`, image]);
    const data = path.join(directory, 'data');
    const log = fs.readFileSync(path.join(data, 'log'), 'utf8');
    const lines = log.split('\n').slice(0, -1);
    for (const line of lines) {
      const [expected, name = ''] = line.split('  ');
      const found = createHash('sha256')
        .update(fs.readFileSync(path.join(data, name)))
        .digest('hex');
      expect({ name, hash: found }).toEqual({ name, hash: expected });
    }
    return lines.length;
  }

  it('its quiesced file system is clean as it is, with all that was synced', async () => {
    const image = await restore(quiesced);
    expect(await needsRecovery(image)).toBe(false);
    await check(image);
    expect(await wholeFiles(image)).toBeGreaterThanOrEqual(syncedBefore.quiesced);
  });

  it('the other one is clean when its journal is replayed, with all that was synced', async () => {
    const image = await restore(crashed);
    expect(await needsRecovery(image)).toBe(true);
    await execa('e2fsck', ['-E', 'journal_only', '-p', image]);
    await check(image);
    expect(await wholeFiles(image)).toBeGreaterThanOrEqual(syncedBefore.crashed);
  });

  it('cat and xxhsum make the same image of the copy', async () => {
    await execa('xxhsum', ['--quiet', '-c', 'vda.xxh64'], { cwd: crashed });
    const image = chunkmount.path('cat.raw');
    await execa('sh', ['-c', `cat vda/*/* >'${image}'`], { cwd: crashed });
    await chunkmount.succeed('restore', crashed, '--disk=vda', `--to=${crashed}.again`);
    await execa('cmp', [image, `${crashed}.again`]);
  });

  it('the server dies; booted from the copy at once, the guest finds all its files', async () => {
    await libvirt.remove(guest.domain);
    fs.rmSync(guest.disk);
    fs.rmSync(guest.console);
    const args = ['boot', crashed, '--name=writer', `--storage=${storage}`, connect()];
    expect(await chunkmount.succeed(...args)).toBe('writer\n');
    expect(await guest.verifies()).toBeGreaterThanOrEqual(syncedBefore.crashed);
    // It is a VM like any other once its data has been copied, which it need not wait for.
    await chunkmount.succeed('boot', '--finish', 'writer');
    fs.rmSync(crashed, { recursive: true });
    await guest.writesMore(5);
  }, 300_000);
});
