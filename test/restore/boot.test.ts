import { once } from 'node:events';
import * as fs from 'node:fs';
import * as path from 'node:path';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { run } from '../../src/host/exec.js';
import { signalProcess, waitForEnd } from '../../src/host/process-identity.js';
import { loadDomain } from '../../src/libvirt/load-domain.js';
import { whileOpenForWriting } from '../support/held-open.js';
import { eventually } from '../support/libvirt.js';
import { chunkFile, testBytes } from '../support/trees.js';
import { BootSession, contentAfter, type Written } from './boot-session.js';
import { flipBit, KIB, MIB } from './demo-tree.js';
import { daemonOf, expectError } from './image-session.js';
import { holds, MAC, UUID } from './vm-tree.js';

let session: BootSession;

beforeAll(async () => {
  session = await BootSession.start();
});

afterAll(() => session?.close());

beforeEach(() => session.fresh());

afterEach(() => session.sweep());

const WRITES: readonly Written[] = [
  { target: 'vda', offset: 100 * KIB, length: 64 * KIB, pattern: 0x5a },
  { target: 'vda', offset: MIB + 4096, length: 4096, pattern: 0x77 },
  { target: 'vdb', offset: MIB - 512, length: 512, pattern: 0x33 },
];

async function guestWrites(name = 'mail01-boot'): Promise<void> {
  const domain = await session.libvirt.virsh.find(name);
  for (const { target, ...write } of WRITES) await session.libvirt.guestWrite(domain, target, write);
}

describe('boot', () => {
  it('runs the VM on the backup, with an identity of its own, and leaves the backup as it is', async () => {
    const before = session.treeSum();
    const domain = await session.booted('--no-network');
    expect(domain.name).toBe('mail01-boot');
    const { disks, state, uuid } = await loadDomain(session.libvirt.virsh, domain.name);
    expect(state).toBe('running');
    expect(uuid).not.toBe(UUID);
    const image = (target: string) => `${session.mountpoint()}/${target}.img`;
    expect(disks.map(({ target, path: file, backing }) => [target, file, backing])).toEqual([
      ['vda', session.overlay('vda'), [{ path: image('vda'), format: 'raw' }]],
      ['vdb', session.overlay('vdb'), [{ path: image('vdb'), format: 'raw' }]],
    ]);
    const xml = await session.libvirt.virsh.dumpXml(uuid);
    expect(xml).not.toContain(MAC);
    expect(xml).toContain("<link state='down'/>");
    await guestWrites();
    for (const target of ['vda', 'vdb'] as const) {
      const content = contentAfter(target, WRITES);
      expect(await holds(session.overlay(target), 'qcow2', content, session.directory), target).toBe(true);
    }
    expect(session.treeSum()).toBe(before);
    expect(await session.ended('discard')).toBe('');
    await session.expectNothing();
    expect(session.treeSum()).toBe(before);
  });

  it('several at once, from one tree; --list and --json tell of them', async () => {
    const one = JSON.parse((await session.boot('--name=one', '--json')).stdout) as Record<string, unknown>;
    expect(one).toMatchObject({
      name: 'one',
      mountpoint: session.mountpoint('one'),
      disks: [
        { target: 'vda', overlay: session.overlay('vda', 'one') },
        { target: 'vdb', overlay: session.overlay('vdb', 'one') },
      ],
    });
    await session.booted('--name=two');
    const list = await session.chunkmount.succeed('boot', '--list');
    expect(list.split('\n').map((line) => line.split('  ')[0])).toEqual(['one', 'two', '']);
    expect(list).toContain(session.tree);
    await guestWrites('two');
    await session.ended('discard', 'one');
    expect(await session.state('two')).toBe('running');
    await session.ended('finish', 'two');
    await session.expectFinished(WRITES, 'two');
  });

  it('shows the images to QEMU and to nobody else', async () => {
    await session.booted();
    const mountpoint = session.mountpoint();
    expect(fs.statSync(mountpoint).mode & 0o7777).toBe(0o550);
    expect(fs.statSync(path.join(mountpoint, 'vda.img')).mode & 0o7777).toBe(0o440);
    expect(fs.statSync(session.overlay('vda')).mode & 0o077).toBe(0);
  });

  it('brings NVRAM along', async () => {
    const loader = path.join(session.directory, 'loader.fd');
    fs.writeFileSync(loader, Buffer.alloc(256 * KIB));
    const nvram = testBytes(256 * KIB, 31);
    session.fresh({
      more: '<features><acpi/></features>',
      os: `<loader readonly='yes' type='pflash'>${loader}</loader><nvram>/nowhere/mail01_VARS.fd</nvram>`,
      extras: [{ file: 'nvram.fd', kind: 'nvram', content: nvram }],
    });
    await session.booted();
    const file = session.file('mail01-boot_VARS.fd');
    expect((await loadDomain(session.libvirt.virsh, 'mail01-boot')).nvram).toBe(file);
    expect(fs.readFileSync(file).equals(nvram)).toBe(true);
    await session.ended('discard');
    await session.expectNothing();
  });
});

describe('boot --finish', () => {
  it('copies everything while the VM runs, and it needs the backup no more', async () => {
    const domain = await session.booted();
    await guestWrites();
    expect(await session.ended('finish')).toBe(`${session.overlay('vda')}\n${session.overlay('vdb')}\n`);
    expect(await session.state()).toBe('running');
    await session.expectFinished(WRITES);
    fs.renameSync(session.tree, `${session.tree}.gone`);
    await session.libvirt.killQemu(domain);
    await session.libvirt.startDomain(domain.uuid);
    await guestWrites();
    expect(expectError(await session.end('finish'), 2).message).toContain('there is no boot called');
  });

  it('copies everything while the VM is off', async () => {
    const domain = await session.booted();
    await guestWrites();
    await session.libvirt.killQemu(domain);
    await session.ended('finish');
    expect(await session.state()).toBe('shut off');
    await session.expectFinished(WRITES);
  });

  it('waits for a copy that goes on already, and can be killed while it does', async () => {
    const domain = await session.booted();
    await guestWrites();
    const unlimited = await session.pullSlowly(domain.uuid);
    const command = session.chunkmount.start(['boot', '--finish', 'mail01-boot']);
    await new Promise((resolve) => setTimeout(resolve, 1_500));
    command.kill('SIGKILL');
    await command;
    expect(session.boots()).toEqual(['mail01-boot']);
    expect(await session.state()).toBe('running');
    await unlimited();
    await session.ended('finish');
    await session.expectFinished(WRITES);
  });

  it('stopped by a signal it says how to go on, and goes on', async () => {
    const domain = await session.booted();
    const unlimited = await session.pullSlowly(domain.uuid);
    const command = session.chunkmount.start(['boot', '--finish', 'mail01-boot', '--debug']);
    // By its first word it is one that signals reach.
    await once(command.stderr, 'data');
    await new Promise((resolve) => setTimeout(resolve, 1_000));
    command.kill('SIGINT');
    const { exitCode, stderr } = await command;
    expect(exitCode, String(stderr)).toBe(130);
    await unlimited();
    await session.ended('finish');
    await session.expectFinished([]);
  });

  it('waits for a program that writes to an overlay while the VM is off', async () => {
    const domain = await session.booted();
    await session.libvirt.killQemu(domain);
    let finishing: ReturnType<typeof session.chunkmount.start>;
    await whileOpenForWriting({ path: session.overlay('vda'), format: 'qcow2' }, async () => {
      finishing = session.chunkmount.start(['boot', '--finish', 'mail01-boot']);
      let said = '';
      finishing.stderr.on('data', (data) => {
        said += data;
      });
      await eventually(async () => said.includes('is being written by another program'));
    });
    const { exitCode, stderr } = await finishing!;
    expect(exitCode, String(stderr)).toBe(0);
    await session.expectFinished([]);
  });

  it('works after the host was restarted: no VM runs, nothing is mounted', async () => {
    const domain = await session.booted();
    await guestWrites();
    await session.libvirt.killQemu(domain);
    const [daemon] = daemonOf(session.mountpoint());
    await run('umount', [session.mountpoint()]);
    await waitForEnd(daemon!, 60_000);
    await session.ended('finish');
    await session.expectFinished(WRITES);
  });

  it('the daemon of the images died: the VM has to be shut off, then it works', async () => {
    const domain = await session.booted();
    await guestWrites();
    const [daemon] = daemonOf(session.mountpoint());
    signalProcess(daemon!, 'SIGKILL');
    await waitForEnd(daemon!, 60_000);
    const { message, hint } = expectError(await session.end('finish'), 1);
    expect(message).toMatch(/^the images at .* are gone/);
    expect(hint).toContain('virsh destroy mail01-boot');
    await session.libvirt.killQemu(domain);
    await session.ended('finish');
    await session.expectFinished(WRITES);
  });

  it('never takes another backup for the one that was booted', async () => {
    const domain = await session.booted();
    await session.libvirt.killQemu(domain);
    const [daemon] = daemonOf(session.mountpoint());
    await run('umount', [session.mountpoint()]);
    await waitForEnd(daemon!, 60_000);
    const old = `${session.tree}.old`;
    fs.renameSync(session.tree, old);
    fs.cpSync(old, session.tree, { recursive: true, preserveTimestamps: true });
    const sums = path.join(session.tree, 'vdb.xxh64');
    fs.writeFileSync(sums, `0000000000000000${fs.readFileSync(sums, 'latin1').slice(16)}`);
    const { message } = expectError(await session.end('finish'), 1);
    expect(message).toContain('is not the backup any more that mail01-boot was booted from');
    fs.rmSync(session.tree, { recursive: true });
    fs.renameSync(old, session.tree);
    await session.ended('finish');
    await session.expectFinished([]);
  });

  it.each([
    ['damaged', (chunk: string) => flipBit(chunk), 'is corrupt'],
    ['missing', (chunk: string) => fs.renameSync(chunk, `${session.tree}.chunk`), 'is missing'],
  ])('a %s chunk stops it, named; mended, it goes on', async (_, spoil, what) => {
    const domain = await session.booted();
    await guestWrites();
    const chunk = path.join(session.tree, chunkFile('vda', 40));
    const good = fs.readFileSync(chunk);
    spoil(chunk);
    const running = expectError(await session.end('finish'), 4);
    const sentence = `^disk vda of mail01-boot is not copied: .*vda/000000/00000028 ${what}`;
    expect(running.message).toMatch(new RegExp(sentence));
    expect(running.hint).toContain(`(chunkmount verify '${session.tree}') from another copy`);
    expect(running.hint).toContain('chunkmount boot --discard mail01-boot');
    await session.libvirt.killQemu(domain);
    const off = expectError(await session.end('finish'), 4);
    expect(off.message).toContain(`vda/000000/00000028 ${what}`);
    fs.writeFileSync(chunk, good);
    await session.ended('finish');
    await session.expectFinished(WRITES);
  });

  it('the VM is gone: only --discard is left', async () => {
    const domain = await session.booted();
    await session.libvirt.remove(domain);
    expect(expectError(await session.end('finish'), 1).hint).toContain('--discard mail01-boot');
    await session.ended('discard');
    await session.expectNothing();
  });
});

describe('boot refuses, and leaves nothing', () => {
  afterEach(() => session.expectNothing());

  it('a tree without a VM, or a damaged one', async () => {
    const manifest = path.join(session.tree, 'manifest.json');
    const text = fs.readFileSync(manifest, 'utf8');
    fs.writeFileSync(manifest, text.replace('"mail01.xml"', 'null'));
    expect(expectError(await session.boot(), 2).message).toContain('has no domain XML');
    fs.writeFileSync(manifest, text);
    fs.truncateSync(path.join(session.tree, 'vdb.xxh64'), 10);
    expect(expectError(await session.boot(), 4).message).toContain('vdb.xxh64');
  });

  it.each([
    ['no name', ['--name=a/b'], 2, /cannot be the name/],
    ['no storage', ['--storage=/nowhere'], 2, /does not exist/],
    ['no libvirt', ['--connect=qemu:///system?socket=/nowhere'], 1, /cannot be reached/],
    ['two things at once', ['--list'], 2, /only one thing/],
  ])('%s', async (_, options, exitCode, message) => {
    expect(expectError(await session.boot(...options), exitCode).message).toMatch(message);
  });

  it('nothing to do, or a boot that is not there', async () => {
    expect(expectError(await session.chunkmount.run(['boot']), 2).message).toBe('there is nothing to boot');
    for (const how of ['finish', 'discard'] as const) {
      expect(expectError(await session.end(how, 'other'), 2).hint).toContain('boot --list');
    }
    expect(await session.chunkmount.succeed('boot', '--list')).toBe('');
  });

  it('the list of all because of one whose journal is damaged', async () => {
    const boots = path.join(session.chunkmount.stateDirectory, 'boots');
    for (const name of ['damaged', 'other']) fs.mkdirSync(path.join(boots, name), { recursive: true });
    fs.writeFileSync(path.join(boots, 'damaged', 'journal.jsonl'), '{\n{\n');
    const { exitCode, stdout, stderr } = await session.chunkmount.run(['boot', '--list']);
    expect({ exitCode, stdout }).toEqual({ exitCode: 0, stdout: 'damaged  -  -\nother  -  -\n' });
    expect(stderr).toMatch(/^chunkmount: warning: damaged: the journal .* is damaged in line 1$/m);
    fs.rmSync(boots, { recursive: true });
  });

  it('a VM that does not start on this host', async () => {
    session.fresh({ devices: "<interface type='bridge'><source bridge='cm-none'/></interface>" });
    const { message, hint } = expectError(await session.boot(), 1);
    expect(message).toMatch(/^mail01-boot does not start: /);
    expect(hint).toContain('restore TREE --define');
  });

  it('files and a directory that are in the way, and they stay', async () => {
    for (const name of ['mail01-boot-vdb.qcow2', 'mail01-boot.images']) {
      fs.writeFileSync(session.file(name), 'mine');
      expect(expectError(await session.boot(), 2).message).toBe(`${session.file(name)} exists`);
      expect(fs.readFileSync(session.file(name), 'utf8')).toBe('mine');
      fs.rmSync(session.file(name));
    }
  });
});

it('a name that libvirt has, or another boot', async () => {
  await session.booted('--name=one');
  expect(expectError(await session.boot('--name=one'), 2).message).toContain(
    'there is a VM called one already',
  );
  await session.libvirt.remove(await session.libvirt.virsh.find('one'));
  for (const target of ['vda', 'vdb']) fs.rmSync(session.overlay(target, 'one'));
  const elsewhere = session.file('elsewhere');
  fs.mkdirSync(elsewhere);
  const { message, hint } = expectError(await session.boot('--name=one', `--storage=${elsewhere}`), 3);
  expect(message).toBe('one has been booted from a tree already');
  expect(hint).toContain('--discard one');
  await session.ended('discard', 'one');
  fs.rmdirSync(elsewhere);
  await session.expectNothing();
});

describe('boot --discard', () => {
  it('a VM that is off, twice', async () => {
    const domain = await session.booted();
    await session.libvirt.killQemu(domain);
    await session.ended('discard');
    await session.expectNothing();
    expectError(await session.end('discard'), 2);
  });

  it('keeps everything while libvirt does not answer', async () => {
    await session.booted();
    await session.libvirt.stopDaemon('SIGKILL');
    const { message } = expectError(await session.end('discard'), 1);
    expect(message).toContain('cannot be reached');
    expect(fs.existsSync(session.overlay('vda'))).toBe(true);
    expect(daemonOf(session.mountpoint())).toHaveLength(1);
    await session.libvirt.startDaemon();
    await session.ended('discard');
    await session.expectNothing();
  });

  it('leaves alone a file that somebody put in place of an overlay', async () => {
    const domain = await session.booted();
    await session.libvirt.killQemu(domain);
    fs.rmSync(session.overlay('vda'));
    fs.writeFileSync(session.overlay('vda'), 'mine');
    const { exitCode, stderr } = await session.end('discard');
    expect(exitCode, stderr).toBe(0);
    expect(stderr).toContain('is not the file that was made for the VM any more');
    expect(fs.readFileSync(session.overlay('vda'), 'utf8')).toBe('mine');
    fs.rmSync(session.overlay('vda'));
    await session.expectNothing();
  });

  it('removes no overlay that another VM lies on, nor what is below it', async () => {
    const domain = await session.booted();
    await session.libvirt.killQemu(domain);
    const disk = { target: 'vda', path: session.overlay('vda'), format: 'qcow2' };
    const other = await session.libvirt.define('other', [disk], { start: false });
    const { message } = expectError(await session.end('discard'), 1);
    expect(message).toBe(`${session.overlay('vda')} is used by the VM other`);
    expect(daemonOf(session.mountpoint())).toHaveLength(1);
    await session.libvirt.remove(other);
    await session.ended('discard');
    await session.expectNothing();
  });

  it('says who keeps the images busy', async () => {
    await session.booted();
    const fd = fs.openSync(path.join(session.mountpoint(), 'vda.img'), 'r');
    const { message } = expectError(await session.end('discard'), 1);
    fs.closeSync(fd);
    expect(message).toContain(`(process ${process.pid})`);
    await session.ended('discard');
    await session.expectNothing();
  });

  it('the images stay readable for as long as the VM runs, whatever happens to the tree’s path', async () => {
    await session.booted();
    fs.renameSync(session.tree, `${session.tree}.moved`);
    await guestWrites();
    await session.ended('finish');
    await session.expectFinished(WRITES);
  });
});
