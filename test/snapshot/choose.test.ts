import * as fs from 'node:fs';
import * as os from 'node:os';
import * as path from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { run } from '../../src/host/exec.js';
import type { Disk } from '../../src/libvirt/domain.js';
import { loadDomain } from '../../src/libvirt/load-domain.js';
import { overlayProvider } from '../../src/snapshot/overlay/provider.js';
import type { SnapshotKind } from '../../src/snapshot/provider.js';
import { chooseProviders } from '../../src/snapshot/select.js';
import { makeImage, type TestDisk, TestLibvirt } from '../support/libvirt.js';
import { RecordingReporter, SnapshotSession } from '../support/snapshot-session.js';

const MIB = 1024 * 1024;

let libvirt: TestLibvirt;
/** A file system of 100 MiB. */
let small: string;
let disks: TestDisk[];

beforeAll(async () => {
  // Mounted first: libvirtd sees the mounts that were there when it started.
  small = fs.mkdtempSync(path.join(os.tmpdir(), 'cm-small-'));
  await run('mount', ['-t', 'tmpfs', '-o', 'size=100m', 'tmpfs', small]);
  libvirt = await TestLibvirt.start();
  const readonly = path.join(libvirt.directory, 'readonly.img');
  const image = path.join(small, 'vda.img');
  await makeImage(readonly, 'raw', MIB);
  await makeImage(image, 'raw', MIB);
  disks = [
    { target: 'vda', path: image, format: 'raw' },
    { target: 'vdb', path: readonly, format: 'raw', extra: '<readonly/>' },
  ];
});

afterAll(async () => {
  await libvirt?.close();
  await run('umount', ['-l', small]);
  fs.rmdirSync(small);
});

async function choose(name: string, snapshot: 'auto' | SnapshotKind, order = (all: Disk[]) => all) {
  const { virsh } = libvirt;
  const reporter = new RecordingReporter();
  const domain = await loadDomain(virsh, name);
  const disks = order([...domain.disks]);
  const groups = await chooseProviders({ virsh, domain, disks, snapshot, reporter });
  const kinds = groups.map((group) => [group.provider.kind, ...group.disks.map(({ target }) => target)]);
  return { kinds, messages: reporter.messages };
}

describe('a running VM', () => {
  beforeAll(async () => {
    await libvirt.define('running', disks);
  });

  it('gets overlays, but not for a disk that is read-only', async () => {
    const { kinds, messages } = await choose('running', 'auto');
    expect(kinds).toEqual([
      ['overlay', 'vda'],
      ['none', 'vdb'],
    ]);
    expect(messages).toEqual([
      'debug: disk vda: snapshot kind overlay, because running is running',
      'debug: disk vdb: snapshot kind none, because the disk is read-only',
    ]);
  });

  it('has its disks frozen in one order, whatever that of its disks is', async () => {
    const { kinds } = await choose('running', 'auto', (all) => all.reverse());
    expect(kinds).toEqual([
      ['overlay', 'vda'],
      ['none', 'vdb'],
    ]);
  });

  it('is refused without a snapshot, with the way out', async () => {
    await expect(choose('running', 'none')).rejects.toMatchObject({
      message:
        'no backup without a snapshot of running is possible: disk vda: running is running, and would write it meanwhile',
      hint: expect.stringContaining('--snapshot=auto'),
    });
  });

  it.each([
    ['pmsuspended', /virsh dompmwakeup running\)$/],
    ['crashed', /virsh destroy running/],
    ['in shutdown', /until it is off/],
  ] as const)('that is %s is refused, with the way out', async (state, hint) => {
    const { virsh } = libvirt;
    const domain = { ...(await loadDomain(virsh, 'running')), state };
    const reporter = new RecordingReporter();
    for (const how of [
      { snapshot: 'auto' },
      { snapshot: 'pull' },
      { snapshot: 'none', pause: true },
    ] as const)
      await expect(
        chooseProviders({ virsh, domain, disks: domain.disks, reporter, ...how }),
      ).rejects.toMatchObject({
        message: expect.stringContaining(`running is ${state}`),
        hint: expect.stringMatching(hint),
      });
  });

  it('both kinds together freeze and undo', async () => {
    const { virsh } = libvirt;
    const session = new SnapshotSession(virsh, path.join(libvirt.directory, 'both'), 'both');
    const domain = await loadDomain(virsh, 'running');
    const groups = await chooseProviders({
      virsh,
      domain,
      disks: domain.disks,
      snapshot: 'auto',
      reporter: session.reporter,
    });
    for (const { provider, disks: some } of groups) {
      await session.freeze(provider, 'running', { targets: some.map(({ target }) => target) });
    }
    expect(await session.undo()).toEqual([]);
    expect(fs.readdirSync(small)).toEqual(['vda.img']);
  });

  it.each([
    ['too little space for an overlay', 60, /has only \d+ MiB left for an overlay/],
    ['no space at all', 99, /MiB left for an overlay/],
  ])('%s: refused, and nothing is left', async (_, filled, message) => {
    const session = new SnapshotSession(
      libvirt.virsh,
      path.join(libvirt.directory, `full-${filled}`),
      `full${filled}`,
    );
    const filler = path.join(small, 'filler');
    fs.writeFileSync(filler, Buffer.alloc(filled * MIB - 2 * MIB));
    try {
      await expect(session.freeze(overlayProvider, 'running', { targets: ['vda'] })).rejects.toThrow(message);
      expect(session.journal.pending()).toEqual([]);
    } finally {
      fs.rmSync(filler);
    }
    expect(fs.readdirSync(small)).toEqual(['vda.img']);
  });

  it('the disk fills up while the overlay is made: libvirt says so, and nothing is left', async () => {
    const session = new SnapshotSession(libvirt.virsh, path.join(libvirt.directory, 'filling'), 'filling');
    const real = process.env.PATH;
    const bin = path.join(libvirt.directory, 'bin');
    const filler = path.join(small, 'filler');
    fs.mkdirSync(bin);
    const fill = `case "$*" in *snapshot-create*) dd if=/dev/zero of='${filler}' bs=1M 2>/dev/null;; esac`;
    fs.writeFileSync(path.join(bin, 'virsh'), `#!/bin/sh\n${fill}\nPATH='${real}' exec virsh "$@"\n`, {
      mode: 0o755,
    });
    process.env.PATH = `${bin}:${real}`;
    try {
      await expect(session.freeze(overlayProvider, 'running', { targets: ['vda'] })).rejects.toThrow(
        /^no snapshot of running could be made: .*No space left/,
      );
    } finally {
      process.env.PATH = real;
      fs.rmSync(filler);
    }
    expect(await session.undo()).toEqual([]);
    expect(fs.readdirSync(small)).toEqual(['vda.img']);
  });
});

describe('a VM that is shut off', () => {
  beforeAll(async () => {
    await libvirt.define('off', disks, { start: false });
  });

  it('needs no snapshot', async () => {
    expect((await choose('off', 'auto')).kinds).toEqual([['none', 'vda', 'vdb']]);
  });

  it('cannot have an overlay', async () => {
    for (const kind of ['overlay', 'pull'] as const)
      await expect(choose('off', kind)).rejects.toMatchObject({
        message: expect.stringMatching(/off is shut off/),
        hint: expect.stringMatching(/^leave out --snapshot: .*virsh start off/),
      });
  });
});
