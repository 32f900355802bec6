import fc from 'fast-check';
import { beforeAll, it } from 'vitest';
import { findProcesses } from '../../src/host/process-list.js';
import { TestLibvirt } from '../support/libvirt.js';
import { build, fuseDevice, program, requireAll, root } from '../support/requirements.js';
import { BitmapVm, CHUNKS } from './bitmap-vm.js';

const write = fc.record({
  kind: fc.constant('write' as const),
  chunks: fc.uniqueArray(fc.nat(CHUNKS - 1), { minLength: 1, maxLength: 4 }),
  // The longest reaches into the next chunk, and past a piece of the bitmap.
  length: fc.constantFrom(512, 4096, 65_024),
});

/** What can happen to a VM and its backups. */
const event = fc.oneof(
  { weight: 4, arbitrary: write },
  fc.constantFrom(
    { kind: 'session' as const },
    { kind: 'cut off' as const },
    { kind: 'daemon killed' as const },
    { kind: 'job ended' as const },
    { kind: 'restart' as const },
    { kind: 'QEMU killed' as const },
    { kind: 'overlay' as const },
    { kind: 'checkpoint deleted' as const },
  ),
  fc.record({ kind: fc.constant('written offline' as const), chunk: fc.nat(CHUNKS - 1) }),
);
type Event = typeof event extends fc.Arbitrary<infer T> ? T : never;

/** A session of which something goes wrong while it is mounted. */
async function badSession(vm: BitmapVm, chunk: number, happens: () => Promise<unknown>): Promise<void> {
  await vm.chunkmount.succeed(...vm.args());
  await vm.write([chunk]);
  await happens();
  await vm.chunkmount.run(['cleanup', `--vm=${vm.name}`]);
}

async function killDaemon(vm: BitmapVm): Promise<void> {
  const session = `${vm.chunkmount.stateDirectory}/sessions/${vm.name}`;
  for (const { pid } of findProcesses((argv) => argv.at(-1) === session)) process.kill(pid, 'SIGKILL');
}

async function take(given: Event, vm: BitmapVm): Promise<unknown> {
  switch (given.kind) {
    case 'write':
      return vm.write(
        given.chunks.map((chunk) => Math.min(chunk, CHUNKS - 2)),
        'vda',
        given.length,
      );
    case 'written offline':
      await vm.virsh('destroy');
      await vm.writeOffline(given.chunk);
      return vm.virsh('start');
    case 'session':
      return vm.good();
    case 'cut off':
      return badSession(vm, 5, async () => {});
    case 'daemon killed':
      return badSession(vm, 6, () => killDaemon(vm));
    case 'job ended':
      return badSession(vm, 7, () => vm.virsh('domjobabort'));
    case 'restart':
      await vm.virsh('destroy');
      return vm.virsh('start');
    case 'QEMU killed':
      await vm.libvirt.killQemu(vm.domain);
      return vm.virsh('start');
    case 'overlay':
      return vm.good('--snapshot=overlay');
    case 'checkpoint deleted':
      for (const name of await vm.checkpoints())
        await vm.virsh('checkpoint-delete', '--checkpointname', name);
  }
}

beforeAll(() => requireAll(root, build, fuseDevice, program('qemu-img', 'qemu-utils')));

it('every tree is the disk, whatever the guest writes and whatever happens to the VM and its backups', async () => {
  const libvirt = await TestLibvirt.start();
  let count = 0;
  try {
    await fc.assert(
      fc.asyncProperty(fc.array(event, { minLength: 5, maxLength: 9 }), async (events) => {
        const vm = await BitmapVm.make(libvirt, `vm${++count}`);
        try {
          await vm.good();
          for (const given of events) await take(given, vm);
          await vm.good();
          // Else nothing of this was about the tracker.
          await vm.write([1]);
          await vm.tracked(1);
        } finally {
          await vm.close();
          await libvirt.remove(vm.domain);
        }
      }),
      // Each try takes many sessions: what failed is told as it is, and not made smaller first.
      { numRuns: Number(process.env.TRACKING_RUNS ?? 1), endOnFailure: true },
    );
  } finally {
    await libvirt.close();
  }
}, 900_000);
