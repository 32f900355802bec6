import * as path from 'node:path';
import { describe } from 'vitest';
import { overlayProvider } from '../../src/snapshot/overlay/provider.js';
import { snapshotProviderSuite } from '../contracts/snapshot-provider.js';
import { makeImage, TestLibvirt } from '../support/libvirt.js';

const MIB = 1024 * 1024;

describe.each(['root', 'nobody'])('QEMU runs as %s', (user) => {
  snapshotProviderSuite('overlay', {
    provider: overlayProvider,
    guestWrites: true,
    start: () => TestLibvirt.start({ user }),
    async domain(libvirt, name, directory) {
      const vda = path.join(directory, 'vda.qcow2');
      const vdb = path.join(directory, 'vdb.img');
      await makeImage(vda, 'qcow2', 8 * MIB, 0x11);
      await makeImage(vdb, 'raw', 4 * MIB, 0x11);
      return libvirt.define(name, [
        { target: 'vda', path: vda, format: 'qcow2' },
        { target: 'vdb', path: vdb, format: 'raw' },
      ]);
    },
  });
});
