import { afterAll, afterEach, beforeAll, beforeEach, expect, it } from 'vitest';
import { fuseDevice, program, requireAll, root } from '../support/requirements.js';
import { CHUNK, KeptOverlayVm, SIZE } from './kept-overlay-vm.js';

/**
 * So many records does a session of one disk write when it moves its overlay to those that are kept, and merges the one before. What comes
 * before is tried in crash.test.ts.
 */
const RECORDS = 8;

let vm: KeptOverlayVm;

beforeAll(async () => {
  await requireAll(root, fuseDevice, program('qemu-img', 'qemu-utils'), program('xxhsum', 'xxhash'));
  vm = await KeptOverlayVm.start();
});
afterAll(() => vm?.close());
beforeEach(() => vm.fresh());
afterEach(() => vm.dispose());

/** `odd`: the half of the records at which to die. `between`: what happens before the next cleanup. */
async function chain(target: string, odd: 0 | 1, between: () => Promise<void>): Promise<void> {
  await vm.only(target);
  await vm.good();
  const { died, records } = await vm.dying(Number.MAX_SAFE_INTEGER, '--keep-overlay');
  expect(died).toBe(false);
  await vm.expectOnOverlays();
  let known = 0;
  for (let back = 0; back < RECORDS; back++) {
    if (back % 2 !== odd && process.env.ALL_RECORDS === undefined) continue;
    await vm.write(target, back, 0x30 + back);
    // The tree is compared with the disk each time.
    const { died, why } = await vm.dying(records - back, '--keep-overlay');
    expect(died).toBe(true);
    if (why.get(target)?.startsWith('tracker overlay') === true) known++;
    await between();
    const cleanup = await vm.cleanup('--debug');
    expect(cleanup, cleanup.stderr).toMatchObject({ exitCode: 0 });
    await vm.expectOnOverlays();
    await vm.verify(target, back, 0x30 + back);
  }
  // Where nobody saw the end of a merge, whether the base was written since cannot be told, and the disk is read as a whole.
  expect(known).toBeGreaterThanOrEqual(RECORDS / 4);
  await vm.good();
  expect(await vm.good()).toMatchObject({ kept: SIZE / CHUNK });
  expect(await vm.cleanup('--kept')).toMatchObject({ exitCode: 0 });
  await vm.expectOriginal();
}

it(
  'killed at any record while the overlay before is merged: the next cleanup finishes',
  () => chain('vda', 0, async () => {}),
  600_000,
);

it(
  'killed at any record, and QEMU too, and the VM started again',
  () =>
    chain('vdb', 1, async () => {
      await vm.libvirt.killQemu(vm.domain);
      await vm.libvirt.startDomain(vm.name);
    }),
  600_000,
);
