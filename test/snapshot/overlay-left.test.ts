import * as fs from 'node:fs';
import { describe, expect, it } from 'vitest';
import { overlayProvider } from '../../src/snapshot/overlay/provider.js';
import { hasPattern, type TestDisk } from '../support/libvirt.js';
import {
  BEFORE,
  directory,
  disks,
  domain,
  ELSEWHERE,
  expectKept,
  libvirt,
  MIB,
  pathsNow,
  releaseHolds,
  session,
  setDisks,
  start,
  useOverlayVm,
  WRITTEN,
  WRITTEN_LATER,
} from './overlay-vm.js';

useOverlayVm();

/** The QEMU process that was put onto an overlay runs without it: what the overlay holds is deleted only if the base shows it. */
describe.each(['raw', 'qcow2'])('a disk of the format %s', (format) => {
  const disk = () => disks[0] as TestDisk;
  const virsh = (...args: string[]) =>
    libvirt.virsh.call(args[0]!, ['--domain', domain.uuid, ...args.slice(1)]);

  /** A disk that can be unplugged, on an overlay that the guest wrote to. Returns the overlay. */
  async function onOverlay(): Promise<string> {
    const one = disks.find((each) => each.format === format)!;
    for (const other of disks.filter((each) => each !== one)) fs.rmSync(other.path);
    setDisks([{ ...one, target: 'sda', bus: 'scsi' }]);
    await start({ devices: "<controller type='scsi' model='virtio-scsi'/>" });
    await session.freeze(overlayProvider, domain.name);
    await libvirt.guestWrite(domain, 'sda', WRITTEN);
    await releaseHolds();
    return (await pathsNow())[0]!;
  }

  async function unplug(): Promise<void> {
    await virsh('detach-disk', '--target', 'sda', '--live');
    expect(await pathsNow()).toEqual([]);
  }

  async function plugIn(file: string): Promise<void> {
    const driver = ['--driver', 'qemu', '--subdriver', format, '--targetbus', 'scsi'];
    await virsh('attach-disk', '--source', file, '--target', 'sda', ...driver, '--live');
    expect(await pathsNow()).toEqual([file]);
  }

  it('whose base was plugged in again and written is kept, and its overlay too', async () => {
    const overlay = await onOverlay();
    await unplug();
    await plugIn(disk().path);
    await libvirt.guestWrite(domain, 'sda', ELSEWHERE);
    await expectKept(/runs without its overlay/);
    expect(await hasPattern(overlay, 'qcow2', WRITTEN)).toBe(true);
    await libvirt.guestVerify(domain, 'sda', { ...BEFORE, length: MIB });
  });

  it.each([{ committing: true }, { made: false }])(
    'that was unplugged keeps its overlay, whatever the journal has: %j',
    async (data) => {
      const overlay = await onOverlay();
      for (const entry of session.journal.pending()) session.journal.done(entry, data);
      await unplug();
      fs.utimesSync(disk().path, new Date(), new Date());
      await expectKept(/runs without its overlay/);
      expect(await hasPattern(overlay, 'qcow2', WRITTEN)).toBe(true);
    },
  );

  it('whose base holds all that the overlay does loses the overlay, whatever was written elsewhere', async () => {
    const overlay = await onOverlay();
    await unplug();
    await plugIn(disk().path);
    await libvirt.guestWrite(domain, 'sda', WRITTEN);
    await libvirt.guestWrite(domain, 'sda', ELSEWHERE);
    expect(await session.undo()).toEqual([]);
    expect(fs.existsSync(overlay)).toBe(false);
    expect(await pathsNow()).toEqual([disk().path]);
  });

  it('that was merged by hand and written since is told of, until the overlay is removed', async () => {
    const overlay = await onOverlay();
    const layers = ['--base', disk().path, '--top', overlay, '--active', '--wait', '--pivot'];
    await virsh('blockcommit', '--path', 'sda', ...layers);
    await libvirt.guestWrite(domain, 'sda', { ...WRITTEN_LATER, offset: WRITTEN.offset });
    await expectKept(/runs without its overlay/);
    fs.rmSync(overlay);
    expect(await session.undo()).toEqual([]);
    expect(fs.readdirSync(directory)).toHaveLength(1);
  });
});
