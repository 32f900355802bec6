import * as fs from 'node:fs';
import { execa } from 'execa';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { TestChunkmount } from '../support/chunkmount.js';
import { noise } from '../support/images.js';
import { makeImage, type TestDomain, TestLibvirt } from '../support/libvirt.js';
import { fuseDevice, program, requireAll, root } from '../support/requirements.js';

const MIB = 1024 * 1024;
const CHUNK = 64 * 1024;

/** Longer than after a write that counts as racy; see still.ts. */
const QUIET_MS = 2_000;

describe('the disks of a VM', () => {
  const chunkmount = new TestChunkmount();
  const vda = chunkmount.path('vda.raw');
  const vdb = chunkmount.path('vdb.qcow2');
  let libvirt: TestLibvirt;
  let domain: TestDomain;

  beforeAll(async () => {
    await requireAll(root, fuseDevice, program('qemu-img', 'qemu-utils'), program('xxhsum', 'xxhash'));
    libvirt = await TestLibvirt.start();
    fs.writeFileSync(vda, noise(4 * MIB, 1));
    await makeImage(vdb, 'qcow2', 4 * MIB, 0x22);
    domain = await libvirt.define('mail01', [
      { target: 'vda', path: vda, format: 'raw' },
      { target: 'vdb', path: vdb, format: 'qcow2' },
    ]);
  });

  afterAll(async () => {
    await chunkmount.close();
    await libvirt?.close();
  });

  /** A session; the tree is compared with the disks themselves, as its sums and as its chunks. */
  async function session() {
    await new Promise((resolve) => setTimeout(resolve, QUIET_MS));
    const script =
      'cd "$CHUNKMOUNT_TREE" && xxhsum --quiet -c vda.xxh64 vdb.xxh64 && cat vda/*/* | sha256sum';
    const args = ['--vm=mail01', `--connect=${libvirt.uri}`, `--chunk-size=${CHUNK}`, '--debug'];
    const { exitCode, stdout, stderr } = await chunkmount.run(['run', ...args, '--', 'sh', '-c', script]);
    expect({ exitCode, stderr }).toMatchObject({ exitCode: 0 });
    const kept = /; (\d+) chunks kept unread/.exec(stderr)?.[1];
    const why = (target: string) =>
      new RegExp(`disk ${target}: ((?:tracker \\w+ knows what|all) .*)`).exec(stderr)?.[1];
    return { sum: stdout.split(' ')[0], kept: Number(kept), vda: why('vda'), vdb: why('vdb') };
  }

  async function sumOf(image: string): Promise<string | undefined> {
    return (await execa('sha256sum', [image])).stdout.split(' ')[0];
  }

  it('are read when they were written, and not when they were not, whether it runs or is off', async () => {
    expect(await session()).toMatchObject({ kept: 0, sum: await sumOf(vda) });
    expect(await session()).toMatchObject({
      sum: await sumOf(vda),
      vda: expect.stringContaining('still knows'),
    });

    await libvirt.guestWrite(domain, 'vda', { offset: MIB, length: 4096, pattern: 0x33 });
    const written = await session();
    expect(written).toMatchObject({
      sum: await sumOf(vda),
      vda: expect.stringMatching(/all .* was written/),
    });

    await libvirt.virsh.call('destroy', ['--domain', domain.uuid]);
    await session();
    const off = await session();
    expect(off).toMatchObject({ kept: (8 * MIB) / CHUNK, sum: await sumOf(vda) });
    for (const reason of [off.vda, off.vdb])
      expect(reason).toContain('tracker still knows what changed: 0 bytes');
  });
});
