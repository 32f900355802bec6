import * as path from 'node:path';
import { noneProvider } from '../../src/snapshot/none.js';
import { snapshotProviderSuite } from '../contracts/snapshot-provider.js';
import { makeImage, TestLibvirt } from '../support/libvirt.js';

const MIB = 1024 * 1024;

snapshotProviderSuite('none', {
  provider: noneProvider,
  guestWrites: false,
  start: () => TestLibvirt.start(),
  async domain(libvirt, name, directory) {
    const vda = path.join(directory, 'vda.qcow2');
    const vdb = path.join(directory, 'vdb.img');
    await makeImage(vda, 'qcow2', 4 * MIB, 0x11);
    await makeImage(vdb, 'raw', 4 * MIB, 0x11);
    const disks = [
      { target: 'vda', path: vda, format: 'qcow2' },
      { target: 'vdb', path: vdb, format: 'raw' },
    ];
    return libvirt.define(name, disks, { start: false });
  },
});
