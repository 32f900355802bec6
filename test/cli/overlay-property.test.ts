import * as fs from 'node:fs';
import fc from 'fast-check';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { fuseDevice, program, requireAll, root } from '../support/requirements.js';
import { CHUNK, KeptOverlayVm, SIZE } from './kept-overlay-vm.js';

const CHUNKS = SIZE / CHUNK;

const chunk = fc.nat(CHUNKS - 1);
const target = fc.constantFrom('vda', 'vdb');

/** What can happen to a VM and its sessions. */
const event = fc.oneof(
  { weight: 3, arbitrary: fc.record({ kind: fc.constant('write' as const), target, chunk }) },
  fc.record({ kind: fc.constant('discard' as const), target, chunk }),
  { weight: 2, arbitrary: fc.record({ kind: fc.constant('session' as const) }) },
  fc.record({ kind: fc.constant('session without' as const) }),
  { weight: 2, arbitrary: fc.record({ kind: fc.constant('killed session' as const), at: fc.nat(60) }) },
  fc.record({ kind: fc.constant('cut off' as const), target, chunk, daemon: fc.boolean() }),
  fc.record({ kind: fc.constant('crash of QEMU' as const) }),
  fc.record({ kind: fc.constant('off and on' as const) }),
  fc.record({ kind: fc.constant('session while off' as const) }),
  fc.record({ kind: fc.constant('shut off meanwhile' as const), target, chunk }),
  fc.record({ kind: fc.constant('merged by hand' as const), target }),
  fc.record({ kind: fc.constant('cleanup' as const), kept: fc.boolean() }),
);
type Event = typeof event extends fc.Arbitrary<infer T> ? T : never;

let vm: KeptOverlayVm;
let writes = 0;

beforeAll(async () => {
  await requireAll(root, fuseDevice, program('qemu-img', 'qemu-utils'), program('xxhsum', 'xxhash'));
  vm = await KeptOverlayVm.start();
});
afterAll(() => vm?.close());

const virsh = (...args: string[]) => vm.libvirt.virsh.call(args[0]!, args.slice(1));

async function cleanup(...options: string[]): Promise<void> {
  const result = await vm.cleanup('--debug', ...options);
  expect(result, result.stderr).toMatchObject({ exitCode: 0 });
}

function write(where: { target: string; chunk: number }): Promise<void> {
  return vm.write(where.target, where.chunk, ++writes % 256);
}

async function mounted(work: () => Promise<unknown>): Promise<void> {
  const result = await vm.chunkmount.run(vm.args('--keep-overlay'));
  expect(result, result.stderr).toMatchObject({ exitCode: 0 });
  await work();
}

/** Merges the overlay that a disk is on, if it is on one, and removes its file. */
async function mergeByHand(disk: string): Promise<void> {
  const index = vm.disks.findIndex((one) => one.target === disk);
  const overlay = (await vm.paths()).now[index]!;
  if (overlay === vm.disks[index]!.path) return;
  const base = ['--base', vm.disks[index]!.path, '--active', '--pivot'];
  await virsh('blockcommit', '--domain', vm.name, '--wait', '--path', disk, ...base);
  fs.rmSync(overlay);
}

async function take(given: Event): Promise<void> {
  switch (given.kind) {
    case 'write':
      return write(given);
    case 'discard':
      return vm.libvirt.guestDiscard(vm.domain, given.target, {
        offset: given.chunk * CHUNK,
        length: CHUNK,
      });
    case 'session':
      return void (await vm.good());
    case 'session without':
      await vm.session();
      return vm.expectOriginal();
    case 'killed session':
      await vm.dying(given.at + 1, '--keep-overlay');
      return cleanup();
    case 'cut off':
      return mounted(async () => {
        await write(given);
        if (given.daemon) await vm.killDaemon();
        await vm.cleanup();
      });
    case 'crash of QEMU':
      await vm.libvirt.killQemu(vm.domain);
      return void (await virsh('start', '--domain', vm.name));
    case 'off and on':
      await virsh('destroy', '--domain', vm.name);
      return void (await virsh('start', '--domain', vm.name));
    case 'session while off':
      await virsh('destroy', '--domain', vm.name);
      await vm.good();
      return void (await virsh('start', '--domain', vm.name));
    case 'shut off meanwhile':
      return mounted(async () => {
        await write(given);
        await virsh('destroy', '--domain', vm.name);
        await cleanup();
        await virsh('start', '--domain', vm.name);
      });
    case 'merged by hand':
      return mergeByHand(given.target);
    case 'cleanup':
      return cleanup(...(given.kept ? ['--kept'] : []));
  }
}

it('every tree is the disk, whatever is written, killed and merged while overlays are kept', async () => {
  await fc.assert(
    fc.asyncProperty(fc.array(event, { minLength: 6, maxLength: 9 }), async (events) => {
      await vm.fresh();
      try {
        await vm.good();
        for (const given of events) await take(given);
        await vm.good();
        await vm.expectOnOverlays();
        await write({ target: 'vda', chunk: 5 });
        // Else nothing of this was about the tracker.
        expect(await vm.good()).toMatchObject({ kept: 2 * CHUNKS - 1 });
        const before = await vm.sums();
        await cleanup('--kept');
        await vm.expectOriginal();
        expect(await vm.sums()).toEqual(before);
      } finally {
        await vm.dispose();
      }
    }),
    // Each try takes many sessions: what failed is told as it is, and not made smaller first.
    { numRuns: Number(process.env.TRACKING_RUNS ?? 1), endOnFailure: true },
  );
}, 3_600_000);
