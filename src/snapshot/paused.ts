import { failed } from '../errors.js';
import type { Disk } from '../libvirt/domain.js';
import { findQemu } from '../libvirt/qemu-process.js';
import { diskRefusal } from './disk-refusal.js';
import { imageOf, imagesBelow, noneProvider } from './none.js';
import { keepStill, pauseUndo } from './pause.js';
import type { Snapshot, SnapshotProvider, SnapshotRequest } from './provider.js';

async function freeze(request: SnapshotRequest): Promise<Snapshot> {
  const { virsh, domain, journal, reporter, disks, options } = request;
  if (!domain.active) return noneProvider.freeze(request);
  const qemu = findQemu(domain);
  if (qemu === undefined) throw failed(`the QEMU process of ${domain.name} is not found on this host`);
  const ran = await keepStill({ virsh, domain, qemu, journal }, imagesBelow(disks));
  if (ran) reporter.notice(`${domain.name} is paused until cleanup`);
  if (options.quiesce !== 'no')
    reporter.warn(
      `the file systems of ${domain.name} were not frozen: it is only paused (--no-snapshot); its backup is as after a power failure`,
    );
  // QEMU has them open for writing all the while, and says so by its locks.
  const frozen = disks.map((disk) => ({ target: disk.target, image: { ...imageOf(disk), inUse: true } }));
  return { time: new Date(), consistency: 'crash', disks: frozen };
}

/** No snapshot: the VM is paused, and its images are read as they are, until the session ends (`--no-snapshot`). */
export const pausedProvider: SnapshotProvider = {
  kind: 'none',
  async refusal({ domain }, disk: Disk) {
    const general = diskRefusal(disk);
    if (general !== undefined) return `disk ${disk.target}: ${general}`;
    if (!domain.active || domain.state === 'running' || domain.state === 'paused') return undefined;
    return `disk ${disk.target}: ${domain.name} is ${domain.state}, and can be paused only while it runs`;
  },
  freeze,
  undo: { ...noneProvider.undo, ...pauseUndo },
};
