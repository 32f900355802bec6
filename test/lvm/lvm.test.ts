import * as fs from 'node:fs';
import * as path from 'node:path';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { run } from '../../src/host/exec.js';
import type { Disk } from '../../src/libvirt/domain.js';
import { loadDomain } from '../../src/libvirt/load-domain.js';
import { inspectSnapshots } from '../../src/snapshot/inspect-snapshots.js';
import { spaceInGroup, volumeByName, volumeOfDevice } from '../../src/snapshot/lvm/logical-volume.js';
import { lvmProvider } from '../../src/snapshot/lvm/provider.js';
import { chooseProviders } from '../../src/snapshot/select.js';
import { bytesOf, DEFAULT_SNAPSHOT_SIZE } from '../../src/snapshot/snapshot-size.js';
import { watchSnapshots } from '../../src/snapshot/watch-snapshots.js';
import { LVM_KIND } from '../../src/snapshot/watched-kinds.js';
import { snapshotProviderSuite } from '../contracts/snapshot-provider.js';
import { eventually, hasPattern, makeImage, type TestDomain, TestLibvirt } from '../support/libvirt.js';
import { deviceMapper, program, requireAll } from '../support/requirements.js';
import { RecordingReporter, SnapshotSession } from '../support/snapshot-session.js';
import {
  listVolumes,
  makePool,
  makeVolume,
  removeVolumes,
  type TestVolume,
  VOLUME_GROUP,
} from '../support/volumes.js';

const MIB = 1024 * 1024;
const BEFORE = { offset: 0, length: 4 * MIB, pattern: 0x11 };
/** Where the test of a full snapshot does not write. */
const UNTOUCHED = { offset: 48 * MIB, length: 4 * MIB, pattern: 0x11 };
const POOL = 'pool';

async function start(): Promise<TestLibvirt> {
  await requireAll(deviceMapper, program('lvcreate', 'lvm2'));
  return TestLibvirt.start();
}

function define(
  libvirt: TestLibvirt,
  name: string,
  volumes: readonly TestVolume[],
  format = 'raw',
): Promise<TestDomain> {
  return libvirt.define(
    name,
    volumes.map(({ device }, index) => ({ target: `vd${'ab'[index]}`, path: device, format, type: 'block' })),
  );
}

snapshotProviderSuite('thick LVM snapshots', {
  provider: lvmProvider,
  guestWrites: true,
  start,
  inventory: listVolumes,
  async domain(libvirt, name) {
    const vda = await makeVolume(`${name}-a`, 8, { pattern: BEFORE.pattern });
    const vdb = await makeVolume(`${name}-b`, 4, { pattern: BEFORE.pattern });
    return define(libvirt, name, [vda, vdb]);
  },
  remove: (name) => removeVolumes(`${name}-a`, `${name}-b`),
});

describe('with a thin pool', () => {
  beforeAll(() => makePool(POOL, 256));
  afterAll(() => removeVolumes(POOL));

  snapshotProviderSuite('thin LVM snapshots', {
    provider: lvmProvider,
    guestWrites: true,
    start,
    inventory: listVolumes,
    async domain(libvirt, name) {
      const vda = await makeVolume(`${name}-a`, 8, { pool: POOL, pattern: BEFORE.pattern });
      const vdb = await makeVolume(`${name}-b`, 4, { pool: POOL, pattern: BEFORE.pattern });
      return define(libvirt, name, [vda, vdb]);
    },
    remove: (name) => removeVolumes(`${name}-a`, `${name}-b`),
  });
});

describe('one VM on logical volumes', () => {
  let libvirt: TestLibvirt;
  let domain: TestDomain;
  let session: SnapshotSession;
  let count = 0;

  // One VM for all: it takes long to start.
  beforeAll(async () => {
    libvirt = await start();
    const volumes = [
      await makeVolume('one-a', 64, { pattern: BEFORE.pattern }),
      await makeVolume('one-b', 64),
    ];
    domain = await define(libvirt, 'one', volumes);
  });

  afterAll(async () => {
    await libvirt?.close();
    await removeVolumes('one-a', 'one-b');
  });

  beforeEach(() => {
    count++;
    session = new SnapshotSession(libvirt.virsh, path.join(libvirt.directory, `one-${count}`), `v${count}`);
  });

  afterEach(() => session.undo());

  /** Puts a program before that one which counts how often it is called. Ends it, and returns the number. */
  function counted(name: string): () => number {
    const { PATH = '' } = process.env;
    const directory = fs.mkdtempSync(path.join(libvirt.directory, 'counted-'));
    const calls = path.join(directory, 'calls');
    const script = `#!/bin/sh\necho >>${calls}\nPATH='${PATH}'\nexec ${name} "$@"\n`;
    fs.writeFileSync(path.join(directory, name), script, { mode: 0o755 });
    process.env.PATH = `${directory}:${PATH}`;
    return () => {
      process.env.PATH = PATH;
      return fs.readFileSync(calls, 'utf8').length;
    };
  }

  it('auto takes LVM, and says why', async () => {
    const { virsh } = libvirt;
    const reporter = new RecordingReporter();
    const loaded = await loadDomain(virsh, domain.name);
    const { disks } = loaded;
    const asked = counted('lvs');
    const groups = await chooseProviders({ virsh, domain: loaded, disks, snapshot: 'auto', reporter });
    // Each time it looks at all devices of the host.
    expect(asked()).toBe(2);
    expect(groups.map(({ provider, disks }) => [provider.kind, disks.length])).toEqual([['lvm', 2]]);
    expect(reporter.messages[0]).toContain('the disk is a logical volume');
  });

  it('the VM stands still while both snapshots are made, and goes on', async () => {
    await session.freeze(lvmProvider, domain.name);
    expect(session.reporter.messages.join()).toMatch(/one was paused for \d+ ms/);
    expect((await libvirt.virsh.state(domain.uuid)).state).toBe('running');
  });

  it('one raw volume needs no pause', async () => {
    await session.freeze(lvmProvider, domain.name, { targets: ['vda'] });
    expect(session.reporter.messages).toEqual([]);
  });

  it('a VM that was paused stays so', async () => {
    await libvirt.virsh.suspend(domain.uuid);
    await session.freeze(lvmProvider, domain.name);
    expect((await libvirt.virsh.state(domain.uuid)).state).toBe('paused');
    expect(await session.undo()).toEqual([]);
    expect((await libvirt.virsh.state(domain.uuid)).state).toBe('paused');
    await libvirt.virsh.resume(domain.uuid);
  });

  it('one volume of a qcow2, of which QEMU has something in memory, needs a pause', async () => {
    const { virsh } = libvirt;
    const loaded = await loadDomain(virsh, domain.name);
    const disks = [{ ...loaded.disks[0]!, format: 'qcow2' }];
    const { id, journal, reporter } = session;
    const request = {
      virsh,
      domain: loaded,
      disks,
      sessionId: id,
      options: { quiesce: 'no' },
      journal,
      reporter,
    } as const;
    const snapshot = await lvmProvider.freeze(request);
    expect(snapshot.disks[0]!.image.format).toBe('qcow2');
    expect(reporter.messages.join()).toMatch(/one was paused for \d+ ms/);
  });

  it('what is to be made is recorded first', async () => {
    const before = await listVolumes();
    const death = { records: 1, before: true };
    expect(await session.dyingFreeze(lvmProvider, domain.name, death, { targets: ['vda'] })).toBe(true);
    expect(await listVolumes()).toEqual(before);
  });

  it('the size of a snapshot: in bytes and percent, and at most what is of use', async () => {
    const origin = { size: 64 * MIB, extentSize: 4 * MIB, chunkSize: 512 * 1024 };
    for (const snapshotSize of [
      { kind: 'bytes', bytes: 15 * MIB },
      { kind: 'percent', percent: 50 },
      undefined,
    ] as const) {
      await session.freeze(lvmProvider, domain.name, { targets: ['vda'], snapshotSize });
      const { size } = (await volumeByName(VOLUME_GROUP, `cm-${session.id}-vda`))!;
      expect(size).toBe(bytesOf(snapshotSize ?? DEFAULT_SNAPSHOT_SIZE, origin));
      expect(await chunkSizeOf(`cm-${session.id}-vda`)).toBe(origin.chunkSize);
      expect(await session.undo()).toEqual([]);
    }
  });

  /** In bytes. */
  async function chunkSizeOf(snapshot: string): Promise<number> {
    const args = ['--noheadings', '--nosuffix', '--units=b', '--options=chunk_size'];
    return Number((await run('lvs', [...args, `${VOLUME_GROUP}/${snapshot}`])).stdout);
  }

  it('too little space in the group is told before anything is made', async () => {
    // There is enough for one of them, and not for both.
    const filler = await makeVolume('filler', 3860);
    try {
      await expect(session.freeze(lvmProvider, domain.name)).rejects.toThrow(
        /^the volume group cmtest has \d+ MiB left/,
      );
      expect(session.journal.pending()).toEqual([]);
      const loaded = await loadDomain(libvirt.virsh, domain.name);
      const refusal = () => lvmProvider.refusal({ virsh: libvirt.virsh, domain: loaded }, loaded.disks[0]!);
      expect(await refusal()).toBeUndefined();
      const { free } = await spaceInGroup(VOLUME_GROUP);
      await makeVolume('rest', free / MIB);
      expect(await refusal()).toBe(`disk vda: the volume group ${VOLUME_GROUP} has no space left`);
      await removeVolumes('rest');
    } finally {
      await removeVolumes(filler.name);
    }
  });

  it('a snapshot that ran full is known to be invalid, and reading it fails', async () => {
    const snapshot = await session.freeze(lvmProvider, domain.name, {
      targets: ['vda'],
      snapshotSize: { kind: 'bytes', bytes: 4 * MIB },
    });
    await libvirt.guestWrite(domain, 'vda', { offset: 0, length: 32 * MIB, pattern: 0x22 });
    const volume = await volumeByName(VOLUME_GROUP, `cm-${session.id}-vda`);
    expect(volume?.invalid).toBe(true);
    expect(await hasPattern(snapshot.disks[0]!.image.path, 'raw', UNTOUCHED)).toBe(false);
    const { lost } = await inspectSnapshots(session.journal);
    expect(lost.map(({ message }) => message)).toEqual([
      expect.stringMatching(/cm-v\d+-vda of disk vda ran full/),
    ]);
    expect(await session.undo()).toEqual([]);
    await libvirt.guestVerify(domain, 'vda', { offset: 0, length: 32 * MIB, pattern: 0x22 });
  });

  it.each([false, true])('one that is nearly full is told, or enlarged (%s)', async (autoExtend) => {
    await session.freeze(lvmProvider, domain.name, {
      targets: ['vda'],
      snapshotSize: { kind: 'bytes', bytes: 16 * MIB },
    });
    expect(await inspectSnapshots(session.journal)).toEqual({ lost: [], unknown: [] });
    await libvirt.guestWrite(domain, 'vda', { offset: 0, length: 14 * MIB, pattern: 0x22 });
    const ending = new AbortController();
    const lost: string[] = [];
    const watching = watchSnapshots({
      entries: session.journal.pending(),
      reporter: session.reporter,
      autoExtend,
      onLost: (message) => lost.push(message),
      intervalMs: 100,
      signal: ending.signal,
    });
    try {
      const said = autoExtend ? 'notice: the LVM snapshot' : 'warn: the LVM snapshot';
      await expect
        .poll(() => session.reporter.messages, { timeout: 60_000 })
        .toContainEqual(expect.stringMatching(`^${said}`));
      if (!autoExtend) {
        await libvirt.guestWrite(domain, 'vda', { offset: 16 * MIB, length: 16 * MIB, pattern: 0x22 });
        await eventually(async () => lost.length > 0);
      }
    } finally {
      ending.abort();
      await watching;
    }
    expect(lost).toEqual(
      autoExtend ? [] : [expect.stringMatching(/^the LVM snapshot cmtest\/cm-v\d+-vda ran full$/)],
    );
    const volume = await volumeByName(VOLUME_GROUP, `cm-${session.id}-vda`);
    expect(volume!.size).toBe((autoExtend ? 20 : 16) * MIB);
  });

  it('a snapshot that is being read is not removed; later it is', async () => {
    const snapshot = await session.freeze(lvmProvider, domain.name, { targets: ['vda'] });
    const fd = fs.openSync(snapshot.disks[0]!.image.path, 'r');
    const errors = await session.undo();
    expect(errors.map(({ message }) => message)).toEqual([expect.stringContaining('somebody has it open')]);
    const signal = AbortSignal.abort(new Error('ended by SIGINT'));
    expect(await session.undo({ signal })).toEqual([signal.reason]);
    fs.closeSync(fd);
    expect(await session.undo()).toEqual([]);
  });

  it('a volume of the same name that is not ours is left alone', async () => {
    await session.freeze(lvmProvider, domain.name, { targets: ['vda'] });
    const { data } = session.journal.find(LVM_KIND)!;
    const name = `cm-${session.id}-vda`;
    await removeVolumes(name);
    await makeVolume(name, 4);
    expect(await session.undo()).toEqual([]);
    expect(await listVolumes()).toContain(name);
    // Of one that may not have been made the name is all that is known.
    session.journal.intend(LVM_KIND, { ...data, uuid: undefined });
    expect((await session.undo()).map(({ message }) => message)).toEqual([
      expect.stringContaining('is not the snapshot that was made'),
    ]);
    expect(await listVolumes()).toContain(name);
    await removeVolumes(name);
    expect(await session.undo()).toEqual([]);
  });

  it('a VM that is off can be frozen, too', async () => {
    await libvirt.killQemu(domain);
    const snapshot = await session.freeze(lvmProvider, domain.name);
    expect(snapshot.consistency).toBe('offline');
    await libvirt.startDomain(domain.uuid);
    await libvirt.guestWrite(domain, 'vda', { ...UNTOUCHED, pattern: 0x33 });
    expect(await hasPattern(snapshot.disks[0]!.image.path, 'raw', UNTOUCHED)).toBe(true);
  });

  it('a block device that is no logical volume is refused, with the reason', async () => {
    const file = path.join(libvirt.directory, 'loop.img');
    await makeImage(file, 'raw', MIB);
    const device = (await run('losetup', ['--find', '--show', file])).stdout.trim();
    try {
      expect(await volumeOfDevice(device)).toBeUndefined();
      const loaded = await loadDomain(libvirt.virsh, domain.name);
      const disk = { ...loaded.disks[0]!, path: device };
      expect(await lvmProvider.refusal({ virsh: libvirt.virsh, domain: loaded }, disk)).toBe(
        `disk vda: ${device} is no logical volume`,
      );
      const reporter = new RecordingReporter();
      const { virsh } = libvirt;
      const groups = await chooseProviders({
        virsh,
        domain: loaded,
        disks: [disk],
        snapshot: 'auto',
        reporter,
      });
      expect(groups.map(({ provider }) => provider.kind)).toEqual(['overlay']);
      expect(reporter.messages[0]).toContain(`LVM cannot be used (disk vda: ${device} is no logical volume)`);
    } finally {
      await run('losetup', ['--detach', device]);
    }
  });

  it('a volume of which LVM makes no snapshot, or which is not all of the disk, is refused', async () => {
    const { virsh } = libvirt;
    const loaded = await loadDomain(virsh, domain.name);
    const [disk] = loaded.disks;
    const refusal = (changed: Partial<Disk>) =>
      lvmProvider.refusal({ virsh, domain: loaded }, { ...disk!, ...changed });
    expect(await refusal({})).toBeUndefined();
    expect(await refusal({ shareable: true })).toContain('it is shared with other VMs');
    expect(await refusal({ backing: [{ path: '/base', format: 'raw' }] })).toContain('it has a backing file');
    const { disks } = await session.freeze(lvmProvider, domain.name, { targets: ['vda'] });
    const { path: frozen } = disks[0]!.image;
    expect(await refusal({ path: frozen })).toMatch(/cm-v\d+-vda is a thick snapshot itself/);
    const { reporter } = session;
    const auto = {
      virsh,
      domain: loaded,
      disks: [{ ...disk!, path: frozen }],
      snapshot: 'auto',
      reporter,
    } as const;
    expect((await chooseProviders(auto)).map(({ provider }) => provider.kind)).toEqual(['overlay']);
  });
});
