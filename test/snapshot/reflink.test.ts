import * as path from 'node:path';
import { describe } from 'vitest';
import { reflinkProvider } from '../../src/snapshot/reflink/provider.js';
import { snapshotProviderSuite } from '../contracts/snapshot-provider.js';
import { REFLINK_KINDS, TestFileSystem } from '../support/file-systems.js';
import { makeImage, TestLibvirt } from '../support/libvirt.js';

const MIB = 1024 * 1024;

describe.each(REFLINK_KINDS)('on %s', (kind) => {
  let fileSystem: TestFileSystem;

  snapshotProviderSuite('reflink', {
    provider: reflinkProvider,
    guestWrites: true,
    async start() {
      fileSystem = await TestFileSystem.make(kind);
      return fileSystem.asTemporary(() => TestLibvirt.start());
    },
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
    async remove() {
      await fileSystem.close();
    },
  });
});
