import * as fs from 'node:fs';
import * as path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { execa } from 'execa';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { loadDomain } from '../../src/libvirt/load-domain.js';
import { fuseDevice, program, requireAll, root } from '../support/requirements.js';
import { CHUNK, KeptOverlayVm, SIZE } from './kept-overlay-vm.js';

const CHUNKS = SIZE / CHUNK;

let vm: KeptOverlayVm;

beforeAll(async () => {
  await requireAll(root, fuseDevice, program('qemu-img', 'qemu-utils'), program('xxhsum', 'xxhash'));
  vm = await KeptOverlayVm.start();
});
afterAll(() => vm?.close());
beforeEach(() => vm.fresh());
afterEach(() => vm.dispose());

const virsh = (...args: string[]) => vm.libvirt.virsh.call(args[0]!, args.slice(1));

async function stop(): Promise<void> {
  await virsh('destroy', '--domain', vm.name);
}

async function start(): Promise<void> {
  await virsh('start', '--domain', vm.name);
}

/** A session that keeps overlays, and what the guest writes after it. */
async function keptAndWritten(): Promise<void> {
  await vm.good();
  await vm.write('vda', 3, 0x31);
  await vm.write('vdb', 4, 0x32);
}

describe('what changed is known still, when', () => {
  it('QEMU was killed, and the VM started again; and it is off, and while it is off', async () => {
    await keptAndWritten();
    await vm.libvirt.killQemu(vm.domain);
    await start();
    await vm.write('vda', 5, 0x33);
    expect(await vm.good()).toMatchObject({ kept: 2 * CHUNKS - 3 });
    await vm.expectOnOverlays();

    await vm.write('vda', 6, 0x34);
    await stop();
    expect(await vm.good()).toMatchObject({ kept: 2 * CHUNKS - 1 });
    expect((await vm.good()).kept).toBeGreaterThanOrEqual(2 * CHUNKS - 1);
    await start();
    await vm.write('vdb', 7, 0x35);
    // Chunk 6 of vda is in its overlay still, and may have been written too shortly before those sessions for `still` to vouch for it.
    expect((await vm.good()).kept).toBeGreaterThanOrEqual(2 * CHUNKS - 2);
    await vm.expectOnOverlays();

    // Without the option, all is merged.
    await vm.write('vdb', 8, 0x36);
    expect(await vm.session()).toMatchObject({ result: { exitCode: 0 }, kept: 2 * CHUNKS - 1 });
    await vm.expectOriginal();
    await vm.verify('vdb', 8, 0x36);
  });

  it('a session was cut off', async () => {
    await keptAndWritten();
    const mounted = await vm.chunkmount.run(vm.args('--keep-overlay'));
    expect(mounted, mounted.stderr).toMatchObject({ exitCode: 0 });
    await vm.write('vda', 9, 0x39);
    for (const { target } of vm.disks) fs.rmSync(vm.indexPath(`${target}.v1`), { force: true });
    await vm.killDaemon();
    expect(await vm.cleanup()).toMatchObject({ exitCode: 1, stderr: expect.stringContaining('daemon') });
    // What the guest wrote meanwhile is in the overlay that was kept before.
    await vm.expectOnOverlays();
    await vm.verify('vda', 9, 0x39);
    const after = await vm.good();
    for (const { target } of vm.disks) expect(after.why.get(target)).toMatch(/overlay|index/);
  });
});

describe('all is read, when', () => {
  it('a disk was resized, or its index is gone; and then what changed is known again', async () => {
    await keptAndWritten();
    await virsh('blockresize', '--domain', vm.name, '--path', 'vda', '--size', `${SIZE + 1024 * 1024}B`);
    fs.rmSync(vm.indexPath('vdb.v1'));
    const { why, kept } = await vm.good();
    expect(kept).toBe(0);
    expect(why.get('vda')).toContain('resized');
    expect(why.get('vdb')).toContain('its index is gone');
    await vm.expectOnOverlays();
    expect(fs.statSync(vm.disks[0]!.path).size).toBe(SIZE + 1024 * 1024);
    await vm.write('vda', CHUNKS + 3, 0x61);
    expect(await vm.good()).toMatchObject({ kept: 2 * CHUNKS + 15 });
  });

  it('a base was overwritten or replaced: nothing is merged into it, and backups go on', async () => {
    await keptAndWritten();
    await stop();
    const [raw, qcow2] = vm.disks.map((disk) => disk.path) as [string, string];
    await execa('qemu-io', ['-f', 'raw', '-c', `write -P 0x77 ${50 * CHUNK} 4096`, raw]);
    await execa('cp', ['--preserve=all', qcow2, `${qcow2}.copy`]);
    fs.renameSync(`${qcow2}.copy`, qcow2);
    await start();
    const session = await vm.session('--keep-overlay');
    expect(session).toMatchObject({ kept: 0, result: { exitCode: 1 } });
    expect(session.why.get('vda')).toMatch(/vda\.raw may have been written by others/);
    expect(session.why.get('vdb')).toMatch(/lies on another base/);
    for (const what of ['was written', 'was replaced']) expect(session.result.stderr).toContain(what);
    await vm.write('vda', 11, 0x37);
    expect(await vm.session('--keep-overlay')).toMatchObject({ kept: 2 * CHUNKS - 1 });
    await vm.verify('vda', 3, 0x31);
    await vm.verify('vda', 50, 0x77);
  });

  it('an overlay was merged by hand, or its base pulled into it', async () => {
    await keptAndWritten();
    const args = ['--domain', vm.name, '--wait'];
    await virsh('blockcommit', ...args, '--path', 'vda', '--active', '--pivot');
    await virsh('blockpull', ...args, '--path', 'vdb');
    await vm.write('vda', 12, 0x38);
    const session = await vm.good();
    expect(session.kept).toBe(0);
    expect(session.why.get('vda')).toMatch(/not on the overlay of the last session, but on .*vda\.raw/);
    expect(session.why.get('vdb')).toMatch(/has no base any more/);
    expect(session.result.stderr).toMatch(/vdb .* was copied into the overlay .*, which is the VM's image/);
    expect(await vm.good()).toMatchObject({ kept: 2 * CHUNKS });
    expect(await vm.cleanup('--kept')).toMatchObject({ exitCode: 0 });
    const { now, next } = await vm.paths();
    expect(now).toEqual(next);
    expect(now).toEqual([vm.disks[0]!.path, expect.stringMatching(/vdb\.cm-/)]);
  });

  it('the VM was defined and started without its overlay', async () => {
    const xml = path.join(vm.libvirt.directory, `${vm.name}.xml`);
    // Of a file that was written just before the session its times tell nothing.
    await sleep(2_000);
    await keptAndWritten();
    const [overlay] = (await vm.paths()).now as string[];
    await stop();
    // One was deleted, the other is there.
    fs.rmSync(overlay!);
    fs.writeFileSync(
      xml,
      fs.readFileSync(xml, 'utf8').replace('<name>', `<uuid>${vm.domain.uuid}</uuid><name>`),
    );
    await virsh('define', '--file', xml);
    await start();
    await vm.write('vda', 13, 0x39);
    const session = await vm.session('--keep-overlay');
    // The base of vdb is what was backed up, and was not written since.
    expect(session).toMatchObject({ kept: CHUNKS, result: { exitCode: 1 } });
    expect(session.why.get('vda')).toMatch(/not on the overlay of the last session/);
    expect(session.why.get('vdb')).toMatch(/tracker still knows/);
    expect(session.result.stderr).toMatch(/vdb of .* was started again on .*vdb\.qcow2, without its overlay/);
    await vm.write('vdb', 14, 0x3a);
    expect(await vm.session('--keep-overlay')).toMatchObject({ kept: 2 * CHUNKS - 1 });
  });

  it('it was reverted to an internal snapshot', async () => {
    // These need qcow2 for all disks.
    await vm.only('vdb');
    await virsh('snapshot-create-as', '--domain', vm.name, '--name', 'internal');
    await vm.good();
    await vm.write('vdb', 4, 0x32);
    const [overlay] = (await vm.paths()).now as string[];
    await virsh('snapshot-revert', '--domain', vm.name, '--snapshotname', 'internal', '--force');
    const session = await vm.session('--keep-overlay');
    expect(session.kept).toBe(0);
    expect(session.why.get('vdb')).toMatch(/not on the overlay of the last session/);
    // What the guest wrote after the backup is kept, until somebody says that it is not wanted.
    expect(session.result).toMatchObject({ exitCode: 1, stderr: expect.stringContaining(overlay!) });
    fs.rmSync(overlay!);
    expect(await vm.good()).toMatchObject({ kept: CHUNKS });
    await vm.expectOnOverlays();
    await virsh('snapshot-delete', '--domain', vm.name, '--snapshotname', 'internal', '--metadata');
  });
});

describe('all is merged, when', () => {
  it('the VM is shut off during a session, or forgotten after it', async () => {
    await keptAndWritten();
    const mounted = await vm.chunkmount.run(vm.args('--keep-overlay'));
    expect(mounted, mounted.stderr).toMatchObject({ exitCode: 0 });
    await vm.scanned();
    await vm.write('vda', 15, 0x3b);
    await stop();
    expect(await vm.cleanup()).toMatchObject({ exitCode: 0 });
    await vm.expectOriginal();

    await start();
    expect((await vm.good()).kept).toBe(0);
    await vm.write('vdb', 16, 0x3c);
    await stop();
    await virsh('undefine', '--domain', vm.name);
    expect(await vm.cleanup('--kept')).toMatchObject({ exitCode: 0 });
    expect(fs.readdirSync(vm.directory).sort()).toEqual(['vda.raw', 'vdb.qcow2']);
    vm.domain = await vm.libvirt.define(vm.name, vm.disks);
    await vm.verify('vda', 15, 0x3b);
    await vm.verify('vdb', 16, 0x3c);
  });

  it('the VM is transient: it would start without its overlays', async () => {
    await vm.dispose();
    await vm.fresh({ transient: true });
    const { result } = await vm.good();
    expect(result.stderr).toContain('the VM is transient');
    expect(await vm.kept()).toEqual([]);
  });
});

it('dump leaves a kept overlay where it is, chain refuses it, estimate and list tell of it', async () => {
  await keptAndWritten();
  expect(await vm.chunkmount.run(['dump', ...vm.args()])).toMatchObject({ exitCode: 0 });
  await vm.expectOnOverlays();
  const connect = `--connect=${vm.libvirt.uri}`;
  const { estimates } = JSON.parse(
    await vm.chunkmount.succeed('estimate', `--vm=${vm.name}`, connect, `--chunk-size=${CHUNK}`, '--json'),
  );
  for (const disk of estimates[0].disks)
    expect(disk).toMatchObject({ tracker: 'overlay', send: { most: CHUNK } });
  const chain = await vm.chunkmount.run([
    'chain',
    `--vm=${vm.name}`,
    connect,
    `--to=${vm.chunkmount.path('chains')}`,
  ]);
  expect(chain).toMatchObject({ exitCode: 1, stderr: expect.stringContaining('cleanup --kept') });
  const list = await vm.chunkmount.run(['list']);
  expect(list.stderr).toMatch(/disk vda \(overlay, .*left where it lies\) is kept/);
  expect((await loadDomain(vm.libvirt.virsh, vm.name)).state).toBe('running');
  expect(await vm.good()).toMatchObject({ kept: 2 * CHUNKS - 2 });
});
