import * as fs from 'node:fs';
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest';
import { endSession } from '../../src/backup/end-session.js';
import type { Estimate } from '../../src/backup/estimate.js';
import { listKept, listSessions } from '../../src/backup/list-sessions.js';
import { loadDescription, loadInactive } from '../../src/libvirt/load-domain.js';
import { silentReporter } from '../../src/report/reporter.js';
import { StateDirectory } from '../../src/session/state-directory.js';
import { expectError, traces } from '../cli/expectations.js';
import { BEFORE, CrashSession } from '../crash/crash-session.js';
import { type Extent, eventually } from '../support/libvirt.js';
import { build, deviceMapper, fuseDevice, program, requireAll } from '../support/requirements.js';
import { listVolumes, makePool, makeVolume, removeVolumes } from '../support/volumes.js';
import { heldIn } from './thin-sessions.js';

const POOL = 'crash-pool';
const NAME = 'lvmcrash';
const MIB = 1024 * 1024;
const WRITTEN = { offset: MIB, length: 65536 };
const CHUNK = 64 * 1024;
const SIZE = 8 * MIB;

/**
 * What the command records until its tree is mounted: a pause, a snapshot of each volume, the thin pool's metadata, the mountpoint, the
 * daemon.
 */
const MOUNT_RECORDS = 14;

/** One VM with a thick and a thin volume, of which the last session left a snapshot, and the real program, which is killed. */
describe('frozen by LVM', () => {
  let session: CrashSession;
  let state: StateDirectory;
  const mountArgs = () => [
    ...[`--vm=${NAME}`, `--connect=${session.libvirt.uri}`],
    ...['--snapshot=lvm', '--snapsize=50%', '--keep-snapshot', '--chunk-size=64K'],
  ];
  const cleanupArgs = ['cleanup', `--vm=${NAME}`];
  const wholeSession = () =>
    session.chunkmount.run([
      ...['run', '--debug', ...mountArgs(), '--'],
      ...['sh', '-c', 'cat "$CHUNKMOUNT_TREE"/*.xxh64'],
    ]);

  beforeAll(async () => {
    const thinDelta = program('thin_delta', 'thin-provisioning-tools');
    await requireAll(build, deviceMapper, fuseDevice, program('lvcreate', 'lvm2'), thinDelta);
    session = await CrashSession.start();
    state = new StateDirectory(session.chunkmount.stateDirectory);
    await makePool(POOL, 64);
    const { pattern } = BEFORE;
    const volumes = [
      await makeVolume('crash-thick', SIZE / MIB, { pattern }),
      await makeVolume('crash-thin', SIZE / MIB, { pool: POOL, pattern }),
    ];
    const disks = volumes.map(({ device }, number) => {
      return { target: `vd${'ab'[number]}`, path: device, format: 'raw', type: 'block' as const };
    });
    await session.adopt(NAME, disks);
    expect((await wholeSession()).exitCode).toBe(0);
  });

  afterAll(async () => {
    if (session !== undefined) console.log(`\n${session.table()}\n`);
    await session?.close();
    await removeVolumes('crash-thick', POOL);
  });

  // A test that failed half-way must not fail the others.
  afterEach(async () => {
    if (state.sessions().length > 0) await session.chunkmount.run(['cleanup', '--all']);
  });

  /** What the guest wrote last to each disk, at one place. */
  const written = [BEFORE.pattern, BEFORE.pattern];

  /** What it never wrote before, to one disk. Whether it is there `expectWell` looks: every process takes its time in this machine. */
  async function guestWrites(disk: number): Promise<void> {
    written[disk]!++;
    const { offset, length } = WRITTEN;
    const command = `write -P ${written[disk]} ${offset} ${length}`;
    const hmp = `qemu-io -d /machine/peripheral/virtio-disk${disk}/virtio-backend "${command}"`;
    const args = ['--domain', session.domain.uuid, '--hmp', '--cmd', hmp];
    expect((await session.libvirt.virsh.call('qemu-monitor-command', args)).trim()).toBe('');
  }

  /** QEMU and we see the device through the same cache. */
  function isFull(device: string, { offset, length, pattern }: Extent): boolean {
    const fd = fs.openSync(device, 'r');
    try {
      const bytes = Buffer.alloc(length);
      expect(fs.readSync(fd, bytes, 0, length, offset)).toBe(length);
      return bytes.equals(Buffer.alloc(length, pattern));
    } finally {
      fs.closeSync(fd);
    }
  }

  async function found(): Promise<string> {
    return (await listSessions(state)).find(({ name }) => name === NAME)?.state ?? 'nothing';
  }

  /** The VM runs on its volumes with what it wrote last, nothing is left but the snapshot that is kept, and there is nothing to clean up. */
  async function expectWell(): Promise<void> {
    const { virsh } = session.libvirt;
    const { uuid } = session.domain;
    expect((await virsh.state(uuid)).state).toBe('running');
    const images = session.disks.map(({ path }) => path);
    expect((await loadDescription(virsh, uuid)).disks.map(({ path }) => path)).toEqual(images);
    await eventually(async () => traces(session.chunkmount).length === 0).catch(() =>
      expect(traces(session.chunkmount)).toEqual([]),
    );
    expect(listKept(state).map(({ target }) => target)).toEqual(['vdb']);
    const volumes = (await listVolumes()).map((name) => name.replace(/^cm-.*-/, 'kept-'));
    expect(volumes).toEqual(['kept-vdb', POOL, 'crash-thick', 'crash-thin']);
    for (const [disk, image] of images.entries()) {
      expect(isFull(image, { ...WRITTEN, pattern: written[disk]! })).toBe(true);
      expect(isFull(image, BEFORE)).toBe(true);
    }
    const again = { name: NAME, state, command: 'test', keepLock: false, reporter: silentReporter };
    expect(await endSession(again)).toEqual({ kind: 'nothing' });
  }

  it('reads of the thin volume what was written since, and of the thick one everything', async () => {
    await guestWrites(0);
    await guestWrites(1);
    // `estimate` knows it without a session. Killed while it holds the pool's metadata, which it then tells of:
    const estimateArgs = ['estimate', ...mountArgs().slice(0, 2), '--chunk-size=64K', '--json'];
    expect(await session.dying(2, estimateArgs)).toMatchObject({ died: true });
    expect(await heldIn(POOL)).not.toBe('-');
    await session.chunkmount.succeed(...cleanupArgs);
    expect(await heldIn(POOL)).toBe('-');
    const { estimates } = JSON.parse(await session.chunkmount.succeed(...estimateArgs)) as {
      estimates: Estimate[];
    };
    expect(estimates[0]!.disks).toMatchObject([
      { target: 'vda', data: SIZE, read: SIZE, tracker: null },
      { target: 'vdb', data: SIZE, read: (1 + 16) * CHUNK, send: { least: 0, most: CHUNK }, tracker: 'thin' },
    ]);
    expect(await heldIn(POOL)).toBe('-');
    await expectWell();
    const { exitCode, stderr } = await wholeSession();
    expect(exitCode, stderr).toBe(0);
    expect(stderr).toContain(`disk vdb: tracker thin knows what changed: ${CHUNK} bytes`);
    const told = /(\d+) bytes read of the disks; (\d+) chunks kept unread, (\d+) audited/.exec(stderr);
    const [bytesRead, kept, audited] = told!.slice(1).map(Number);
    expect(kept).toBe(SIZE / CHUNK - 1);
    expect(bytesRead).toBe(SIZE + (1 + audited!) * CHUNK);
    await expectWell();
  });

  it.each(Array.from({ length: MOUNT_RECORDS }, (_, index) => index + 1))(
    'chunkmount killed after record %i of mount',
    async (records) => {
      const { died } = await session.dying(records, mountArgs());
      expect(died).toBe(true);
      await guestWrites(records % 2);
      const before = await found();
      const daemon = records % 2 === 0 && (await session.killDaemon());
      session.note('lvm', `mount after record ${records}${daemon ? ', and its daemon' : ''}`, before);
      await session.cleansUp();
      await expectWell();
    },
  );

  it('there are no more records than that in mount; killed after each record of cleanup', async () => {
    const { died, records } = await session.dying(1000, mountArgs());
    expect({ died, records }).toEqual({ died: false, records: MOUNT_RECORDS });
    await guestWrites(1);
    let killed = 0;
    while ((await session.dying(1, cleanupArgs)).died)
      session.note('lvm', `cleanup after record ${++killed}, each time another command`, await found());
    expect(killed).toBeGreaterThan(5);
    await expectWell();
    const { disks } = await loadInactive(session.libvirt.virsh, session.domain.uuid);
    expect(disks.map(({ path }) => path)).toEqual(session.disks.map(({ path }) => path));
    const again = await session.cleanup();
    expect(again).toMatchObject({ exitCode: 0, stderr: expect.stringContaining('has no session') });
  });

  it('the daemon is killed: cleanup says that there is no whole backup; --kept removes what was kept', async () => {
    expect((await session.chunkmount.run(mountArgs())).exitCode).toBe(0);
    await guestWrites(0);
    expect(await session.killDaemon()).toBe(true);
    session.note('lvm', 'the daemon, while mounted', await found());
    const told = expectError(await session.cleanup(), 1);
    expect(told.message).toMatch(/^the daemon of lvmcrash died before its tree was unmounted/);
    await expectWell();
    await session.chunkmount.succeed(...cleanupArgs, '--kept');
    expect(await listVolumes()).toEqual([POOL, 'crash-thick', 'crash-thin']);
  });
});
