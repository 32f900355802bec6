import * as fs from 'node:fs';
import * as path from 'node:path';
import fc from 'fast-check';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { run } from '../../src/host/exec.js';
import { findProcesses } from '../../src/host/process-list.js';
import { REFLINK_KINDS } from '../support/file-systems.js';
import { fuseDevice, program, requireAll, root } from '../support/requirements.js';
import { CHUNK, CHUNKS, KEEP_NOTHING, ReflinkVm, SIZE, TARGETS } from './reflink-vm.js';

const target = fc.constantFrom(...TARGETS);
const place = { target, offset: fc.nat(SIZE / 512 - 1), length: fc.integer({ min: 1, max: 256 }) };
const constant = <K extends string>(kind: K) => fc.record({ kind: fc.constant(kind) });

/** What can happen to a VM, to its images and to its backups. Lengths are in sectors. */
const event = fc.oneof(
  { weight: 6, arbitrary: fc.record({ kind: fc.constant('write' as const), ...place }) },
  { weight: 2, arbitrary: fc.record({ kind: fc.constant('written while off' as const), ...place }) },
  constant('QEMU killed'),
  constant('short session'),
  constant('daemon killed'),
  fc.record({ kind: fc.constant('command killed' as const), afterMs: fc.nat(1500) }),
  constant('session that keeps nothing'),
  constant('session while off'),
  fc.record({ kind: fc.constant('clone gone' as const), target }),
  fc.record({ kind: fc.constant('clone written' as const), target }),
  fc.record({ kind: fc.constant('copied' as const), target, inPlace: fc.boolean() }),
  fc.record({ kind: fc.constant('restored' as const), target, inPlace: fc.boolean() }),
  constant('internal snapshot'),
  constant('reverted'),
  constant('blocks moved'),
);
type Event = typeof event extends fc.Arbitrary<infer T> ? T : never;

/** More of them are longer, too. */
const RUNS = process.env.TRACKING_RUNS;

/** `look`: whether there is a whole session after it. */
const step = fc.record({ event, look: fc.boolean() });

/** Images as they were before the first session. */
const OLD = '.old';

async function mounted(vm: ReflinkVm, work: () => void): Promise<void> {
  const { exitCode, stderr } = await vm.chunkmount.run(['mount', ...vm.given()]);
  expect({ exitCode, stderr }).toMatchObject({ exitCode: 0 });
  work();
  await vm.chunkmount.run(['cleanup', `--vm=${vm.name}`]);
}

async function whileOff(vm: ReflinkVm, work: () => Promise<unknown>): Promise<void> {
  await vm.stop();
  await work();
  await vm.start();
}

async function commandKilled(vm: ReflinkVm, afterMs: number): Promise<void> {
  const command = vm.chunkmount.start(['mount', ...vm.given()]);
  const timer = setTimeout(() => command.kill('SIGKILL'), afterMs);
  await command;
  clearTimeout(timer);
  const { exitCode, stderr } = await vm.chunkmount.run(['cleanup', `--vm=${vm.name}`]);
  // Without a daemon nothing was served, and nothing is not whole.
  if (exitCode !== 0) expect(stderr).toMatch(/no session|not a whole backup/);
}

function killDaemon(vm: ReflinkVm): void {
  const session = path.join(vm.chunkmount.stateDirectory, 'sessions', vm.name);
  for (const { pid } of findProcesses((argv) => argv.at(-1) === session)) process.kill(pid, 'SIGKILL');
}

/** The times are set back as far as a program can. */
async function writeClone(clone: string): Promise<void> {
  await run('touch', [`--reference=${clone}`, `${clone}.times`]);
  fs.writeFileSync(clone, 'x', { flag: 'r+' });
  await run('touch', [`--reference=${clone}.times`, clone]);
  fs.rmSync(`${clone}.times`);
}

async function copy(from: string, to: string, inPlace: boolean): Promise<void> {
  if (inPlace) return void (await run('dd', ['conv=notrunc', 'bs=1M', `if=${from}`, `of=${to}`]));
  fs.copyFileSync(from, `${to}.new`, fs.constants.COPYFILE_FICLONE);
  fs.renameSync(`${to}.new`, to);
}

async function moveBlocks(vm: ReflinkVm): Promise<void> {
  const { directory } = vm.fileSystem;
  if (fs.statfsSync(directory).type === 0x9123683e)
    await run('btrfs', ['balance', 'start', '--full-balance', directory]);
  else
    for (const clone of vm.clones()) await run('xfs_fsr', [path.join(vm.directory, clone)], { accept: [1] });
}

async function take(given: Event, vm: ReflinkVm): Promise<unknown> {
  switch (given.kind) {
    case 'write':
    case 'written while off': {
      const offset = given.offset * 512;
      const length = Math.min(given.length * 512, SIZE - offset);
      if (given.kind === 'write') return vm.write(given.target, offset, length);
      return whileOff(vm, () => vm.writeOff(given.target, offset, length));
    }
    case 'QEMU killed':
      await vm.libvirt.killQemu(vm.domain);
      return vm.start();
    case 'short session':
      return mounted(vm, () => {});
    case 'daemon killed':
      return mounted(vm, () => killDaemon(vm));
    case 'command killed':
      return commandKilled(vm, given.afterMs);
    case 'session that keeps nothing':
      await vm.good(KEEP_NOTHING);
      return expect(vm.clones()).toEqual([]);
    case 'session while off':
      return whileOff(vm, () => vm.good('--snapshot=none'));
    case 'clone gone':
    case 'clone written':
      for (const name of vm.clones().filter((file) => file.startsWith(given.target))) {
        const clone = path.join(vm.directory, name);
        if (given.kind === 'clone gone') fs.rmSync(clone);
        else await writeClone(clone);
      }
      return;
    case 'copied':
    case 'restored': {
      const { path: image } = vm.disks[given.target];
      return whileOff(vm, async () => {
        if (given.kind === 'restored') return copy(image + OLD, image, given.inPlace);
        await run('cp', ['--reflink=never', image, `${image}.copy`]);
        return copy(`${image}.copy`, image, given.inPlace);
      });
    }
    case 'internal snapshot':
    case 'reverted': {
      const how = given.kind === 'reverted' ? '-a' : '-c';
      // There may be none, or one already of an image that was restored meanwhile.
      return whileOff(vm, () =>
        run('qemu-img', ['snapshot', how, 'one', vm.disks.vdb.path], { accept: [1] }),
      );
    }
    case 'blocks moved':
      return moveBlocks(vm);
  }
}

describe.each(REFLINK_KINDS)('a VM on %s', (kind) => {
  let first: ReflinkVm;
  let count = 0;

  beforeAll(async () => {
    await requireAll(root, fuseDevice, program('qemu-img', 'qemu-utils'), program('xxhsum', 'xxhash'));
    await requireAll(program('btrfs', 'btrfs-progs'), program('xfs_fsr', 'xfsprogs'));
    first = await ReflinkVm.make(kind);
  });
  afterAll(() => first?.close());

  it('every tree is the disk, whatever happens between sessions', async () => {
    await fc.assert(
      fc.asyncProperty(
        fc.array(step, { minLength: 3, maxLength: RUNS === undefined ? 4 : 9 }),
        async (steps) => {
          const vm = await first.sibling(`vm${++count}`);
          try {
            for (const { path: image } of Object.values(vm.disks)) fs.copyFileSync(image, image + OLD);
            await vm.good();
            for (const { event: given, look } of steps) {
              await take(given, vm);
              if (look) await vm.good();
            }
            await vm.good();
            await vm.write('vda', CHUNK, 512);
            // Else nothing of this was about trackers.
            expect(await vm.good()).toMatchObject({ kept: 2 * CHUNKS - 1 });
            expect(vm.clones()).toHaveLength(2);
          } finally {
            await vm.remove();
          }
        },
      ),
      // Each try takes many sessions: what failed is told as it is, and not made smaller first.
      { numRuns: Number(RUNS ?? 1), endOnFailure: true },
    );
  }, 900_000);
});
