import * as fs from 'node:fs';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import type { Disk, Domain } from '../../src/libvirt/domain.js';
import { Virsh } from '../../src/libvirt/virsh.js';
import { lvmProvider } from '../../src/snapshot/lvm/provider.js';
import { programFirst } from '../support/dumps.js';
import { temporaryDirectory } from '../support/images.js';
import { deviceMapper, program, requireAll } from '../support/requirements.js';
import { makePool, removeVolumes, VOLUME_GROUP } from '../support/volumes.js';
import { ThinSessions } from './thin-sessions.js';

const POOL = 'small';
/** LVM lists it first. */
const OTHER_POOL = 'empty';
const NAME = `the thin pool ${VOLUME_GROUP}/${POOL}`;

/** In order. */
describe('a thin pool that is nearly full', () => {
  const directory = temporaryDirectory();
  const { PATH } = process.env;
  let disk: ThinSessions;

  beforeAll(async () => {
    const thinDelta = program('thin_delta', 'thin-provisioning-tools');
    await requireAll(deviceMapper, program('lvcreate', 'lvm2'), program('dmsetup'), thinDelta);
    await makePool(OTHER_POOL, 16);
    await makePool(POOL, 16);
    disk = await ThinSessions.make('crowded', POOL, 16);
  });
  afterAll(async () => {
    process.env.PATH = PATH;
    disk?.dispose();
    await removeVolumes(POOL, OTHER_POOL);
    fs.rmSync(directory, { recursive: true });
  });

  it('keeps nothing', async () => {
    disk.write(0, 13 * 16);
    await disk.session();
    const { messages } = disk.reporter;
    expect(messages).toContainEqual(expect.stringMatching(`^warn: ${NAME} is 8\\d\\.\\d+ % full$`));
    expect(messages).toContainEqual(
      expect.stringMatching(
        /^warn: .* is 8\d\.\d+ % full, and the snapshot of disk vda that is kept in it grows$/,
      ),
    );
    disk.write(13 * 16, 2 * 16);
    expect(await disk.changed()).toBe(2 * 16);
    expect(messages).toContainEqual(
      expect.stringMatching(/^warn: .* is 9\d\.\d+ % full: the snapshot of disk vda is not kept/),
    );
    expect(await disk.snapshots()).toEqual([]);
  });

  it.each([
    ['data_percent\\|snap_percent', '94.99', undefined],
    ['data_percent\\|snap_percent', '95.00', `disk vda: ${NAME} is 95 % full`],
    ['metadata_percent', '95.00', `disk vda: ${NAME} is 95 % full`],
  ])('is given nothing more: %s %s %%', async (columns, percent, reason) => {
    const edit = `s/"\\(${columns}\\)":"[^"]*"/"\\1":"${percent}"/g`;
    process.env.PATH = programFirst(directory, 'lvs', `PATH='${PATH}' lvs "$@" | sed '${edit}'`);
    const given = { target: 'vda', device: 'disk', type: 'block', path: disk.volume.device } as Disk;
    const request = { virsh: new Virsh({}), domain: {} as Domain };
    const refusal = await lvmProvider.refusal(request, given);
    process.env.PATH = PATH;
    expect(refusal).toBe(reason);
  });
});
