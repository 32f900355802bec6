import { afterAll, beforeAll, expect, it } from 'vitest';
import { fuseDevice, program, requireAll, root } from '../support/requirements.js';
import { CHUNK, CHUNKS, ReflinkVm } from './reflink-vm.js';

/**
 * So many records does a session of two disks write from the moment on that the backup program is done: it stops serving, moves its
 * clones to those that are kept, and removes the ones before.
 */
const RECORDS = 11;

let vm: ReflinkVm;

beforeAll(async () => {
  await requireAll(root, fuseDevice, program('qemu-img', 'qemu-utils'), program('xxhsum', 'xxhash'));
  vm = await ReflinkVm.make('xfs');
});
afterAll(() => vm?.close());

it('killed at any record while clones are kept and older ones removed: the next cleanup finishes', async () => {
  await vm.good();
  const { exitCode, records } = await vm.dying(Number.MAX_SAFE_INTEGER);
  expect(exitCode).toBe(0);
  for (let back = 0; back < RECORDS; back += process.env.ALL_RECORDS === undefined ? 3 : 1) {
    await vm.write('vda', back * CHUNK, 512);
    const before = vm.clones();
    const died = await vm.dying(records - back);
    expect(died, died.stderr).toMatchObject({ exitCode: undefined, records: records - back });
    // It was read to its end; and the one that was killed before it was a whole session, too.
    expect(died.sums).toEqual({ vda: await vm.sum('vda'), vdb: await vm.sum('vdb') });
    expect(died.why.vda, died.stderr).toMatch(/^tracker reflink knows what changed/);
    const cleanup = await vm.chunkmount.run(['cleanup', `--vm=${vm.name}`]);
    expect(cleanup, cleanup.stderr).toMatchObject({ exitCode: 0 });
    expect(vm.clones()).toHaveLength(2);
    expect(vm.clones().filter((name) => before.includes(name))).toEqual([]);
  }
  expect(await vm.good()).toMatchObject({ kept: 2 * CHUNKS });
}, 300_000);
