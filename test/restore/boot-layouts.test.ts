import * as fs from 'node:fs';
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest';
import { BootSession, contentAfter, type Written } from './boot-session.js';
import { KIB, MIB } from './demo-tree.js';
import { expectError } from './image-session.js';
import { holds } from './vm-tree.js';

let session: BootSession;

beforeAll(async () => {
  session = await BootSession.start();
});

afterAll(() => session?.close());

afterEach(() => session.sweep());

/** One disk without chunks of zeros, one as chunkfs has it. */
const LOOKS = { vda: 'skip', vdb: 'chunkfs' } as const;

const WRITES: readonly Written[] = [
  // Where there is no chunk.
  { target: 'vda', offset: MIB + 4096, length: 4096, pattern: 0x77 },
  { target: 'vdb', offset: 512, length: 512, pattern: 0x33 },
];

describe('boot of disks in other layouts', () => {
  it('runs the VM, and copies it whole', async () => {
    session.fresh({ looks: LOOKS });
    expect(fs.existsSync(`${session.tree}/vda/000000/00000010`)).toBe(false);
    expect(fs.existsSync(`${session.tree}/mail01_vdb/00/00/00/00/00/00/00/10`)).toBe(true);
    const domain = await session.booted();
    for (const { target, ...write } of WRITES) await session.libvirt.guestWrite(domain, target, write);
    const images = (await session.ended('finish')).trimEnd().split('\n');
    for (const [i, target] of (['vda', 'vdb'] as const).entries()) {
      const content = contentAfter(target, WRITES);
      expect(await holds(images[i]!, 'qcow2', content, session.directory), target).toBe(true);
    }
  });

  it('fails at a chunk that is missing, in a copy where others may be', async () => {
    session.fresh({ looks: LOOKS });
    fs.rmSync(`${session.tree}/vda/000000/00000003`);
    await session.booted();
    expect(expectError(await session.end('finish'), 4).message).toContain('vda/000000/00000003 is missing');
    await session.ended('discard');
    expect(
      contentAfter('vda', [])
        .subarray(3 * 64 * KIB, 4 * 64 * KIB)
        .some((byte) => byte !== 0),
    ).toBe(true);
  });
});
