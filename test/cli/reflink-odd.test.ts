import * as fs from 'node:fs';
import * as path from 'node:path';
import { pathToFileURL } from 'node:url';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { findProcesses } from '../../src/host/process-list.js';
import { fuseDevice, program, requireAll, root } from '../support/requirements.js';
import { CHUNK, CHUNKS, ReflinkVm } from './reflink-vm.js';

const CLOCK = pathToFileURL(path.join(import.meta.dirname, 'fixtures/clock.mjs')).href;

let vm: ReflinkVm;

beforeAll(async () => {
  await requireAll(root, fuseDevice, program('qemu-img', 'qemu-utils'), program('xxhsum', 'xxhash'));
  vm = await ReflinkVm.make('xfs');
  // It is small enough.
  expect((await vm.good()).stderr).toMatch(/has \d+ MiB left for what the VM overwrites/);
});

afterAll(() => vm?.close());

/** Begins a session that does not get through the disks, and kills its daemon. */
async function killedSession(): Promise<void> {
  const { exitCode, stderr } = await vm.chunkmount.run([
    'mount',
    ...vm.given('--full-scan', '--bwlimit=64K'),
  ]);
  expect({ exitCode, stderr }).toMatchObject({ exitCode: 0 });
  const directory = path.join(vm.chunkmount.stateDirectory, 'sessions', vm.name);
  const daemons = findProcesses((argv) => argv.at(-1) === directory);
  expect(daemons).toHaveLength(1);
  process.kill(daemons[0]!.pid, 'SIGKILL');
}

const cleanup = (...options: string[]) => vm.chunkmount.run(['cleanup', `--vm=${vm.name}`, ...options]);

function indexFile(name: string): string {
  return path.join(vm.chunkmount.stateDirectory, 'index', vm.name, name);
}

describe('a session goes on from the clones of the last whole one', () => {
  it('although one was killed since, and cleaned up', async () => {
    const kept = vm.clones();
    await vm.write('vda', 3 * CHUNK, 512);
    await killedSession();
    expect(vm.clones()).toHaveLength(4);
    expect(await cleanup()).toMatchObject({ exitCode: 1, stderr: expect.stringContaining('died') });
    expect(vm.clones()).toEqual(kept);
    expect(await vm.good()).toMatchObject({ kept: 2 * CHUNKS - 1 });
    expect(vm.clones()).toHaveLength(2);
  });

  it('although QEMU was killed since', async () => {
    await vm.write('vda', 9 * CHUNK, 512);
    await vm.libvirt.killQemu(vm.domain);
    await vm.start();
    await vm.write('vdb', 9 * CHUNK, 512);
    expect(await vm.good()).toMatchObject({ kept: 2 * CHUNKS - 2 });
  });

  it('although another daemon than the first one ended: cut off by a signal, and nothing is left', async () => {
    const kept = vm.clones();
    const cut = vm.chunkmount.start(['run', ...vm.given(), '--', 'sleep', '60']);
    while (vm.clones().length < 4) await new Promise((resolve) => setTimeout(resolve, 20));
    cut.kill('SIGKILL');
    await cut;
    await cleanup();
    // It was whole by then, or it was not.
    expect(vm.clones()).toHaveLength(2);
    if (vm.clones()[0] === kept[0]) expect(vm.clones()).toEqual(kept);
    await vm.write('vda', 11 * CHUNK, 512);
    expect(await vm.good()).toMatchObject({ kept: 2 * CHUNKS - 1 });
  });

  it('and is estimated', async () => {
    await vm.write('vda', 12 * CHUNK, 512);
    const { uri } = vm.libvirt;
    const given = [`--vm=${vm.name}`, `--connect=${uri}`, `--chunk-size=${CHUNK / 1024}K`, '--json'];
    const { estimates } = JSON.parse(await vm.chunkmount.succeed('estimate', ...given));
    expect(estimates[0].disks).toMatchObject([
      { target: 'vda', tracker: 'reflink', send: { least: 0, most: CHUNK } },
      { target: 'vdb', tracker: 'reflink', send: { least: 0, most: 0 } },
    ]);
    await vm.good();
  });

  it('with the memory, too', async () => {
    await vm.write('vda', 13 * CHUNK, 512);
    expect(await vm.good('--state')).toMatchObject({ kept: 2 * CHUNKS - 1 });
  });
});

describe('all is read when', () => {
  it("a kept clone is gone, of that disk; and the other's was written", async () => {
    fs.rmSync(vm.clone('vda'));
    const { kept, why } = await vm.good();
    expect({ kept, why }).toMatchObject({ kept: CHUNKS, why: { vda: expect.stringContaining('ENOENT') } });
    const written = vm.clone('vdb');
    fs.writeFileSync(written, 'x', { flag: 'r+' });
    const second = await vm.good();
    expect(second).toMatchObject({ kept: CHUNKS, why: { vdb: expect.stringContaining('was written') } });
    // Somebody has use for it; it is not ours any more.
    expect(fs.readFileSync(written, 'latin1')[0]).toBe('x');
    fs.rmSync(written);
  });

  it('the index is older than the kept clone', async () => {
    const names = ['vda.v1', 'vda.tracking.v1.json'];
    const older = names.map((name) => fs.readFileSync(indexFile(name)));
    await vm.write('vda', 14 * CHUNK, 512);
    await vm.good();
    fs.writeFileSync(indexFile('vda.v1'), older[0]!);
    expect(await vm.good()).toMatchObject({
      kept: CHUNKS,
      why: { vda: expect.stringContaining('its index is') },
    });
    for (const [number, name] of names.entries()) fs.writeFileSync(indexFile(name), older[number]!);
    // The clone that this record speaks of is long gone.
    expect(await vm.good()).toMatchObject({ kept: CHUNKS, why: { vda: expect.stringContaining('ENOENT') } });
  });

  it('the clock was set back', async () => {
    const before = process.env.NODE_OPTIONS;
    Object.assign(process.env, { NODE_OPTIONS: `--import=${CLOCK}`, TEST_CLOCK: '+-3600000' });
    try {
      const { kept, why } = await vm.good();
      expect({ kept, why }).toMatchObject({
        kept: 0,
        why: { vda: expect.stringContaining('clock was set back') },
      });
    } finally {
      if (before === undefined) delete process.env.NODE_OPTIONS;
      else process.env.NODE_OPTIONS = before;
      delete process.env.TEST_CLOCK;
    }
    await vm.good();
  });

  it('the disk was resized', async () => {
    const args = ['--domain', vm.domain.uuid, '--path', 'vdb', '--size', `${CHUNKS * CHUNK + CHUNK}B`];
    await vm.libvirt.virsh.call('blockresize', args);
    expect(await vm.good()).toMatchObject({ kept: CHUNKS, why: { vdb: expect.stringContaining('resized') } });
  });

  it('the image was replaced by its copy', async () => {
    await vm.stop();
    const file = vm.disks.vda.path;
    fs.copyFileSync(file, `${file}.copy`, fs.constants.COPYFILE_FICLONE);
    fs.renameSync(`${file}.copy`, file);
    await vm.start();
    const { kept, why } = await vm.good();
    expect({ kept, why }).toMatchObject({
      kept: CHUNKS + 1,
      why: { vda: expect.stringContaining('another file') },
    });
  });
});

it('a VM that is off is compared with its kept clones, which then are of no use any more', async () => {
  await vm.good();
  await vm.stop();
  await vm.writeOff('vda', 0, 512);
  const { kept, why } = await vm.good('--snapshot=none');
  expect({ kept, why }).toMatchObject({
    kept: 2 * CHUNKS,
    why: { vda: expect.stringContaining('tracker reflink') },
  });
  expect(vm.clones()).toEqual([]);
  await vm.start();
  expect(await vm.good()).toMatchObject({ kept: 0 });
});

it('list shows what is kept, and cleanup --kept ends it', async () => {
  const { kept } = JSON.parse(await vm.chunkmount.succeed('list', '--json'));
  expect(kept).toMatchObject([
    { name: vm.name, target: expect.stringMatching(/vd[ab]/), kind: 'reflink-clone' },
    { name: vm.name, target: expect.stringMatching(/vd[ab]/), kind: 'reflink-clone' },
  ]);
  expect(await cleanup('--kept')).toMatchObject({ exitCode: 0 });
  expect(vm.clones()).toEqual([]);
  expect(await vm.good()).toMatchObject({ kept: 0 });
});
