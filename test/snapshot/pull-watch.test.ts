import * as fs from 'node:fs';
import * as os from 'node:os';
import * as path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { execa } from 'execa';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { pullProvider } from '../../src/snapshot/pull/provider.js';
import { watchSnapshots } from '../../src/snapshot/watch-snapshots.js';
import { hasPattern, makeImage, type TestDomain, TestLibvirt } from '../support/libvirt.js';
import { SnapshotSession } from '../support/snapshot-session.js';

const MIB = 1024 * 1024;
/** More than the scratch file's file system holds. */
const SIZE = 128 * MIB;
/** What it takes the guest to write 4 MiB, at least. */
const LEAST_MS = 40;

let small: string;
let libvirt: TestLibvirt;
let image: string;
let domain: TestDomain;

beforeAll(async () => {
  small = fs.mkdtempSync(path.join(os.tmpdir(), 'cm-small-'));
  // Before libvirtd starts, which would not see it otherwise.
  await execa('mount', ['-t', 'tmpfs', '-o', 'size=96m,mode=755', 'tmpfs', small]);
  libvirt = await TestLibvirt.start();
  image = path.join(libvirt.directory, 'vda.img');
  await makeImage(image, 'raw', SIZE, 0x11);
  domain = await libvirt.define('writer', [{ target: 'vda', path: image, format: 'raw' }]);
});

afterAll(async () => {
  await libvirt?.close();
  await execa('umount', ['--lazy', small]);
  fs.rmdirSync(small);
});

it('a guest that overwrites more than there is room for never sees an error: the job is ended first', async () => {
  const session = new SnapshotSession(libvirt.virsh, path.join(libvirt.directory, 'session'), 'w1');
  await session.freeze(pullProvider, domain.name, { overlayDirectory: small });
  const ended = new AbortController();
  const lost: string[] = [];
  const watching = watchSnapshots({
    entries: session.journal.pending(),
    reporter: session.reporter,
    autoExtend: false,
    onLost: (message) => lost.push(message),
    signal: ended.signal,
  });
  const device = '/machine/peripheral/virtio-disk0/virtio-backend';
  for (let offset = 0; offset < SIZE; offset += 4 * MIB) {
    const hmp = `qemu-io -d ${device} "write -P 0x22 ${offset} ${4 * MIB}"`;
    const args = ['--domain', domain.uuid, '--hmp', '--cmd', hmp];
    // While the job is being ended QEMU answers late.
    const write = libvirt.virsh.call('qemu-monitor-command', args, 60_000);
    // No faster than that on any machine: how often we look depends on none.
    const [said] = await Promise.all([write, sleep(LEAST_MS)]);
    expect(said.trim()).toBe('');
  }
  ended.abort();
  await watching;
  const log = fs.readFileSync(path.join(libvirt.directory, 'log', 'qemu', 'writer.log'), 'utf8');
  expect(log).not.toMatch(/write failed|No space/);
  expect(lost).toEqual([expect.stringContaining('was ended before it could harm the VM')]);
  await libvirt.guestVerify(domain, 'vda', { offset: 0, length: SIZE, pattern: 0x22 });
  expect(await hasPattern(image, 'raw', { offset: 0, length: SIZE, pattern: 0x22 })).toBe(true);
  expect(await session.undo()).toEqual([]);
  expect(fs.readdirSync(small)).toEqual([]);
});
