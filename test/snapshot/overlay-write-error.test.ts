import * as fs from 'node:fs';
import * as path from 'node:path';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { run } from '../../src/host/exec.js';
import { PAUSED_BY_IO_ERROR } from '../../src/libvirt/virsh.js';
import { overlayProvider } from '../../src/snapshot/overlay/provider.js';
import { temporaryDirectory } from '../support/images.js';
import { eventually, type TestDomain, TestLibvirt } from '../support/libvirt.js';
import { requireAll, root } from '../support/requirements.js';
import { SnapshotSession } from '../support/snapshot-session.js';
import { releaseHolds } from './overlay-vm.js';

const MIB = 1024 * 1024;
const SECTOR = 512;

/** The guest writes sector 4096 as soon as this is not zero any more. */
const SIGNAL = { offset: SECTOR, length: SECTOR, pattern: 0x55 };

/**
 * A boot sector for a BIOS: reads sector 1 until its first byte is not zero, then writes sector 4096, again and again. Through
 * INT 13h, AH 42h and 43h, with the packet for that at 7c40h.
 */
function bootSector(): Buffer {
  const code = Buffer.from(
    [
      '31c0 8ed8', // xor ax, ax; mov ds, ax
      'be407c', // again: mov si, packet
      'b442 b280 cd13', // mov ah, 42h; mov dl, 80h; int 13h
      '803e008000 74f0', // cmp byte [8000h], 0; je again
      'c706487c0010', // mov word [packet + 8], 4096
      'b80043 b280 cd13 ebf7', // write: mov ax, 4300h; mov dl, 80h; int 13h; jmp write
    ]
      .join('')
      .replaceAll(' ', ''),
    'hex',
  );
  const sector = Buffer.alloc(SECTOR);
  code.copy(sector);
  // Length, one sector, to 0000:8000h, from sector 1.
  Buffer.from([0x10, 0, 1, 0, 0x00, 0x80, 0, 0, 1]).copy(sector, 0x40);
  sector.writeUInt16LE(0xaa55, SECTOR - 2);
  return sector;
}

/** Has no more room than a snapshot wants. */
let small: string;
let libvirt: TestLibvirt;
let domain: TestDomain;
let session: SnapshotSession;
let count = 0;

beforeAll(async () => {
  await requireAll(root);
  small = temporaryDirectory();
  await run('mount', ['-t', 'tmpfs', '-o', 'size=96m,mode=755', 'tmpfs', small]);
  // It sees what was mounted before it was started.
  libvirt = await TestLibvirt.start();
});

afterAll(async () => {
  await libvirt?.close();
  await run('umount', [small]);
  fs.rmdirSync(small);
});

beforeEach(() => {
  count++;
  session = new SnapshotSession(libvirt.virsh, path.join(libvirt.directory, `session-${count}`), `w${count}`);
});

afterEach(async () => {
  await session.undo();
  await libvirt.remove(domain);
  for (const file of fs.readdirSync(small)) fs.rmSync(path.join(small, file));
});

const filler = () => path.join(small, 'filler');

function fill(): void {
  const piece = Buffer.alloc(64 * 1024);
  try {
    for (;;) fs.appendFileSync(filler(), piece);
  } catch (error) {
    expect(error).toMatchObject({ code: 'ENOSPC' });
  }
}

/** A VM with a BIOS that boots from its only disk, which is sparse, in `directory`. */
async function start(directory: string, ready: boolean): Promise<void> {
  const image = path.join(directory, `vda-${count}.img`);
  fs.writeFileSync(image, Buffer.concat([bootSector(), Buffer.alloc(SECTOR, ready ? SIGNAL.pattern : 0)]));
  fs.truncateSync(image, 4 * MIB);
  if (ready) fill();
  const disks = [{ target: 'vda', path: image, format: 'raw' }];
  domain = await libvirt.define(`write-error-${count}`, disks, { start: false });
  const xml = await libvirt.virsh.definition(domain.uuid);
  await libvirt.virsh.define(xml.replace(/<loader.*<\/loader>/, ''));
  await libvirt.startDomain(domain.uuid);
}

const state = () => libvirt.virsh.state(domain.uuid);
const STOPPED = { state: 'paused', reason: PAUSED_BY_IO_ERROR };
const untilStopped = () => eventually(async () => (await state()).reason === PAUSED_BY_IO_ERROR);
const resumed = () => expect.stringMatching(/^notice: .* was stopped by a write error .* is resumed$/);

describe('a write error stopped the VM', () => {
  async function stoppedAtSnapshot(): Promise<void> {
    await start(small, true);
    await untilStopped();
    await session.freeze(overlayProvider, domain.name, { overlayDirectory: libvirt.directory });
    fs.rmSync(filler());
  }

  it('before the snapshot: it is merged, and stays as it was', async () => {
    await stoppedAtSnapshot();
    expect(await session.undo()).toEqual([]);
    expect(await state()).toEqual(STOPPED);
    expect(session.reporter.messages).not.toContainEqual(resumed());
  });

  it('before the snapshot, which a journal of an earlier version does not know: it goes on', async () => {
    await stoppedAtSnapshot();
    await releaseHolds(session);
    for (const entry of session.journal.pending().filter(({ kind }) => kind === 'overlay')) {
      const { stoppedBefore, ...data } = entry.data;
      expect(stoppedBefore).toBe(true);
      session.journal.undone(entry);
      session.journal.done(session.journal.intend(entry.kind, data));
    }
    expect(await session.undo()).toEqual([]);
    expect((await state()).state).toBe('running');
  });

  it('on its overlay: it goes on', async () => {
    await start(libvirt.directory, false);
    await session.freeze(overlayProvider, domain.name, { overlayDirectory: small });
    await libvirt.virsh.suspend(domain.uuid);
    await libvirt.guestWrite(domain, 'vda', SIGNAL);
    fill();
    await libvirt.virsh.resume(domain.uuid);
    await untilStopped();
    expect(await session.undo()).toEqual([]);
    expect((await state()).state).toBe('running');
    expect(session.reporter.messages).toContainEqual(resumed());
  });
});
