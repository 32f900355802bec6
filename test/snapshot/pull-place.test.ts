import * as fs from 'node:fs';
import { createServer, type Server } from 'node:net';
import * as path from 'node:path';
import { execa } from 'execa';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { identify, ownIdentity } from '../../src/host/process-identity.js';
import type { Disk } from '../../src/libvirt/domain.js';
import {
  checkScratchSpace,
  closeSocketDirectory,
  makeSocketDirectory,
  scratchPath,
} from '../../src/snapshot/pull/place.js';
import { temporaryDirectory, withLoopDevice } from '../support/images.js';

let root: string;

beforeEach(() => {
  root = temporaryDirectory();
});
afterEach(() => fs.rmSync(root, { recursive: true }));

function listening(server: Server, socket: string): Promise<void> {
  return new Promise((resolve) => server.listen(socket, resolve));
}

describe("the directory of a backup job's socket", () => {
  const base = () => path.join(root, 'chunkmount');
  const directory = () => path.join(base(), 's1');

  it('is for one user alone', () => {
    makeSocketDirectory(directory(), ownIdentity());
    expect(fs.statSync(base()).mode & 0o777).toBe(0o711);
    expect(fs.statSync(directory()).mode & 0o777).toBe(0o700);
  });

  it('lets the user of QEMU through, also where a strict umask made it', () => {
    fs.mkdirSync(base(), { mode: 0o700 });
    makeSocketDirectory(directory(), ownIdentity());
    expect(fs.statSync(base()).mode & 0o777).toBe(0o711);
  });

  it.each([
    ['others may write to', () => fs.chmodSync(base(), 0o777)],
    ['its group may write to', () => fs.chmodSync(base(), 0o771)],
    ['is of another user', () => fs.chownSync(base(), 65534, 65534)],
    ['is a link', () => fs.renameSync(base(), `${base()}.away`)],
  ])('is not made in one that %s', (_, change) => {
    fs.mkdirSync(base());
    change();
    if (!fs.existsSync(base())) fs.symlinkSync(`${base()}.away`, base());
    expect(() => makeSocketDirectory(directory(), ownIdentity())).toThrow('can be written by others');
    expect(fs.existsSync(directory())).toBe(false);
  });

  it('is of the user that QEMU runs as, until its socket is there; then it is ours', async () => {
    const server = createServer();
    const qemu = execa('setpriv', ['--euid=65534', '--egid=65534', '--clear-groups', 'sleep', '60']);
    try {
      await expect
        .poll(() => fs.readFileSync(`/proc/${qemu.pid}/status`, 'utf8'), { timeout: 30_000 })
        .toMatch(/^Name:\tsleep\n(?:.*\n)*Uid:\t0\t65534\t/);
      makeSocketDirectory(directory(), identify(qemu.pid!)!);
      expect(fs.statSync(directory())).toMatchObject({ uid: 65534, gid: 65534 });
      const socket = path.join(directory(), 'nbd');
      fs.writeFileSync(socket, '');
      expect(() => closeSocketDirectory(directory(), socket)).toThrow('is no socket');
      fs.rmSync(socket);
      await listening(server, socket);
      closeSocketDirectory(directory(), socket);
      expect(fs.statSync(directory())).toMatchObject({ uid: 0, gid: 0 });
    } finally {
      server.close();
      qemu.kill();
      await qemu.catch(() => undefined);
    }
  });
});

it('the room for a scratch file is twice what has to stay free', async () => {
  await execa('mount', ['-t', 'tmpfs', '-o', 'size=40m', 'tmpfs', root]);
  try {
    const scratch = path.join(root, 'scratch');
    const left = (mib: number) =>
      execa('fallocate', ['--length', `${40 - mib}M`, path.join(root, 'ballast')]);
    await left(9);
    checkScratchSpace(scratch);
    await left(7);
    expect(() => checkScratchSpace(scratch)).toThrow('has only 7 MiB left for a scratch file');
  } finally {
    await execa('umount', [root]);
  }
});

it('a scratch file is not made beside a block device, in /dev', async () => {
  const file = path.join(root, 'image');
  fs.writeFileSync(file, Buffer.alloc(4096));
  await withLoopDevice(file, async (device) => {
    const disk = { target: 'vda', path: device } as Disk;
    expect(() => scratchPath(disk, 's1', undefined)).toThrow('is on the block device');
    expect(scratchPath(disk, 's1', root)).toBe(`${root}/vda.cm-s1.scratch.qcow2`);
  });
});
