import { once } from 'node:events';
import * as fs from 'node:fs';
import * as path from 'node:path';
import { pathToFileURL } from 'node:url';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { run } from '../../src/host/exec.js';
import { loadDomain } from '../../src/libvirt/load-domain.js';
import { CLI } from '../support/chunkmount.js';
import { program, requireAll } from '../support/requirements.js';
import { BootSession } from './boot-session.js';
import { KIB } from './demo-tree.js';
import { daemonOf, expectError } from './image-session.js';

const DIE_AT_RECORD = pathToFileURL(path.join(import.meta.dirname, '../crash/die-at-record.mjs')).href;

let session: BootSession;

beforeAll(async () => {
  await requireAll(program('strace'), program('qemu-io', 'qemu-utils'));
  session = await BootSession.start();
});

afterAll(() => session?.close());

beforeEach(() => session.fresh());

afterEach(() => session.sweep());

describe('boot --discard', () => {
  it('removes no overlay that another program writes', async () => {
    const domain = await session.booted();
    await session.libvirt.killQemu(domain);
    const writer = run('qemu-io', ['-f', 'qcow2', '-c', 'sleep 8000', session.overlay('vda')]);
    await new Promise((resolve) => setTimeout(resolve, 1_000));
    const { message } = expectError(await session.end('discard'), 1);
    expect(message).toBe(`another program writes ${session.overlay('vda')}`);
    expect(fs.existsSync(session.overlay('vda'))).toBe(true);
    await writer;
    await session.ended('discard');
    await session.expectNothing();
  });

  it('removes the NVRAM that libvirt made for a VM whose backup has none', async () => {
    const loader = path.join(session.directory, 'loader.fd');
    fs.writeFileSync(loader, Buffer.alloc(256 * KIB));
    session.fresh({
      more: '<features><acpi/></features>',
      os: `<loader readonly='yes' type='pflash'>${loader}</loader><nvram template='${loader}'/>`,
    });
    const domain = await session.booted();
    const { nvram } = await loadDomain(session.libvirt.virsh, domain.name);
    const pid = fs.readFileSync(path.join(session.libvirt.directory, 'libvirtd.pid'), 'latin1').trim();
    const seenByLibvirt = `/proc/${pid}/root${nvram}`;
    expect(fs.existsSync(seenByLibvirt)).toBe(true);
    await session.ended('discard');
    expect(fs.existsSync(seenByLibvirt)).toBe(false);
    await session.expectNothing();
  });
});

describe('boot --finish', () => {
  it('has the copy on the disk before it takes away what it was copied from', async () => {
    const domain = await session.booted();
    await session.libvirt.killQemu(domain);
    const trace = path.join(session.directory, 'trace');
    const options = ['-f', '-y', '-e', 'trace=fsync,umount2', '-o', trace];
    const command = [process.execPath, CLI, 'boot', '--finish', 'mail01-boot'];
    await run('strace', [...options, ...command], { env: session.chunkmount.env });
    const calls = fs.readFileSync(trace, 'utf8').split('\n');
    const unmounted = calls.findIndex((call) => call.includes('umount2('));
    for (const target of ['vda', 'vdb']) {
      const synced = calls.findIndex((call) => call.includes(`/mail01-boot-${target}.qcow2>`));
      expect([target, synced >= 0 && synced < unmounted]).toEqual([target, true]);
    }
    await session.expectFinished([]);
  });

  it('goes on by itself when the VM is shut off meanwhile', async () => {
    const domain = await session.booted();
    await session.pullSlowly(domain.uuid);
    const command = session.chunkmount.start(['boot', '--finish', 'mail01-boot', '--debug']);
    // By its first word it is one that waits for the copy, or soon will.
    await once(command.stderr, 'data');
    await new Promise((resolve) => setTimeout(resolve, 1_000));
    await session.libvirt.killQemu(domain);
    const { exitCode, stderr } = await command;
    expect(exitCode, String(stderr)).toBe(0);
    await session.expectFinished([]);
  });

  it('killed while the VM stands still, it lets it go on the next time', async () => {
    await session.booted();
    const env = {
      NODE_OPTIONS: `--import=${DIE_AT_RECORD}`,
      CRASH_AT: '2',
      CRASH_COUNT: path.join(session.directory, 'count'),
    };
    const killed = await session.chunkmount.start(['boot', '--finish', 'mail01-boot'], env);
    expect(killed).toMatchObject({ signal: 'SIGKILL' });
    expect(await session.state()).toBe('paused');
    await session.ended('finish');
    expect(await session.state()).toBe('running');
    await session.expectFinished([]);
  });

  it('is not over while somebody keeps the images busy', async () => {
    await session.booted();
    const fd = fs.openSync(path.join(session.mountpoint(), 'vda.img'), 'r');
    const { message } = expectError(await session.end('finish'), 1);
    fs.closeSync(fd);
    expect(message).toMatch(
      /^mail01-boot has all of its data, but its images are still mounted: .* is in use/,
    );
    expect(daemonOf(session.mountpoint())).toHaveLength(1);
    await session.ended('finish');
    await session.expectFinished([]);
  });
});
