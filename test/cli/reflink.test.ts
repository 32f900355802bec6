import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { REFLINK_KINDS } from '../support/file-systems.js';
import { fuseDevice, program, requireAll, root } from '../support/requirements.js';
import { CHUNK, CHUNKS, ReflinkVm } from './reflink-vm.js';

/** Chunks that hold data: all of vda, and 8 + 16 of vdb. */
const DATA_CHUNKS = 32 + 24;

describe.each(REFLINK_KINDS)('a VM on %s', (kind) => {
  let vm: ReflinkVm;

  beforeAll(async () => {
    await requireAll(root, fuseDevice, program('qemu-img', 'qemu-utils'), program('xxhsum', 'xxhash'));
    vm = await ReflinkVm.make(kind);
  });

  afterAll(() => vm?.close());

  it('is read once, and then only where it was written', async () => {
    const first = await vm.good();
    expect(first).toMatchObject({ kept: 0, bytesRead: DATA_CHUNKS * CHUNK });
    expect(vm.clones()).toHaveLength(2);
    const kept = vm.clones();

    const second = await vm.good();
    expect(second).toMatchObject({ kept: 2 * CHUNKS });
    expect(second.bytesRead).toBe(second.audited * CHUNK);
    expect(vm.clones().filter((name) => kept.includes(name))).toEqual([]);
    expect(vm.clones()).toHaveLength(2);

    // Across the border of two chunks; and in what was never allocated, in the backing file's part, and again in the same place.
    await vm.write('vda', 5 * CHUNK - 512, 1024);
    await vm.write('vda', 20 * CHUNK, 4096);
    await vm.write('vdb', 3 * CHUNK, 512);
    await vm.write('vdb', 10 * CHUNK, 4096);
    await vm.write('vdb', 30 * CHUNK, 65536);
    const third = await vm.good();
    expect(third).toMatchObject({ kept: 2 * CHUNKS - 6 });
    expect(third.bytesRead).toBe((6 + third.audited) * CHUNK);
  });
});
