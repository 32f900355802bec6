import { afterAll, afterEach, beforeAll, beforeEach, expect, it } from 'vitest';
import { fuseDevice, program, requireAll, root } from '../support/requirements.js';
import { CHUNK, KeptOverlayVm, SIZE } from './kept-overlay-vm.js';

const CHUNKS = SIZE / CHUNK;

/**
 * What a session writes into its journals from the moment on that it moves its overlays to those that are kept, until it has merged the
 * ones before; see "killed at record". What comes before is tried in crash.test.ts.
 */
const RECORDS = 20;

let vm: KeptOverlayVm;

beforeAll(async () => {
  await requireAll(root, fuseDevice, program('qemu-img', 'qemu-utils'), program('xxhsum', 'xxhash'));
  vm = await KeptOverlayVm.start();
});
afterAll(() => vm?.close());
beforeEach(() => vm.fresh());
afterEach(() => vm.dispose());

/** `odd`: the half of the records at which to die. `between`: what happens before the next cleanup. */
async function chain(odd: 0 | 1, between: () => Promise<void>): Promise<void> {
  await vm.good();
  const { died, records } = await vm.dying(Number.MAX_SAFE_INTEGER, '--keep-overlay');
  expect(died).toBe(false);
  await vm.expectOnOverlays();
  let known = 0;
  for (let back = 0; back < RECORDS; back++) {
    if (back % 2 !== odd && process.env.ALL_RECORDS === undefined) continue;
    await vm.write('vda', back, 0x30 + back);
    await vm.write('vdb', back + 1, 0x60 + back);
    // The tree is compared with the disks each time.
    const result = await vm.dying(records - back, '--keep-overlay');
    expect(result).toMatchObject({ died: true });
    await between();
    const cleanup = await vm.cleanup('--debug');
    expect(cleanup, cleanup.stderr).toMatchObject({ exitCode: 0 });
    await vm.expectOnOverlays();
    await vm.verify('vda', back, 0x30 + back);
    await vm.verify('vdb', back + 1, 0x60 + back);
    const { kept } = await vm.good();
    if (kept === 2 * CHUNKS) known++;
  }
  // Where nobody saw the end of a merge, whether the base was written since cannot be told, and a disk is read as a whole.
  expect(known).toBeGreaterThan(RECORDS / 4);
  expect(await vm.cleanup('--kept')).toMatchObject({ exitCode: 0 });
  await vm.expectOriginal();
}

it(
  'killed at any record while the overlay before is merged: the next cleanup finishes',
  () => chain(0, async () => {}),
  600_000,
);

it(
  'killed at any record, and QEMU too, and the VM started again',
  () =>
    chain(1, async () => {
      await vm.libvirt.killQemu(vm.domain);
      await vm.libvirt.virsh.call('start', ['--domain', vm.name]);
    }),
  600_000,
);
