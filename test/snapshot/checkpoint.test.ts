import * as fs from 'node:fs';
import * as path from 'node:path';
import { afterAll, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { run } from '../../src/host/exec.js';
import { qcow2Info } from '../../src/image/qcow2-info.js';
import { identityOf } from '../../src/snapshot/image-identity.js';
import { CHECKPOINT_KIND } from '../../src/snapshot/watched-kinds.js';
import { whileOpenForWriting } from '../support/held-open.js';
import { TestLibvirt } from '../support/libvirt.js';
import { SnapshotSession } from '../support/snapshot-session.js';

const NAME = 'cm-1';
const NOWHERE = '00000000-0000-4000-8000-000000000001';

let libvirt: TestLibvirt;
let directory: string;
let images: string[];
let session: SnapshotSession;
let count = 0;

beforeAll(async () => {
  libvirt = await TestLibvirt.start();
});
afterAll(() => libvirt?.close());

beforeEach(async () => {
  count++;
  directory = path.join(libvirt.directory, `images-${count}`);
  fs.mkdirSync(directory);
  images = ['vda.qcow2', 'vdb.qcow2'].map((name) => path.join(directory, name));
  for (const image of images) {
    await run('qemu-img', ['create', '-q', '-f', 'qcow2', image, '1M']);
    await bitmap(image, '--add', NAME);
  }
  session = new SnapshotSession(libvirt.virsh, path.join(libvirt.directory, `session-${count}`), '1');
});

async function bitmap(image: string, ...args: string[]): Promise<void> {
  const [what = '', ...more] = args;
  await run('qemu-img', ['bitmap', what, '-f', 'qcow2', image, ...more]);
}

async function names(image: string): Promise<string[]> {
  return (await qcow2Info(image)).bitmaps.map(({ name }) => name);
}

/** As the journal has it of a session of a VM that does not run. */
function record(uuid = NOWHERE): void {
  const entry = session.journal.intend(CHECKPOINT_KIND, {
    session: session.id,
    connect: libvirt.virsh.options.connect,
    domain: { uuid, name: 'mail01' },
    checkpoint: NAME,
    targets: ['vda', 'vdb'],
    images: images.map((image) => ({ path: image, identity: identityOf(image)! })),
  });
  session.journal.done(entry);
}

describe('the bitmaps of a checkpoint, in the images of a VM that is gone,', () => {
  it('are removed from all of them, and no other ones', async () => {
    for (const image of images) await bitmap(image, '--add', 'mine');
    record();
    expect(await session.undo()).toEqual([]);
    for (const image of images) expect(await names(image)).toEqual(['mine']);
    expect(session.reporter.messages).toEqual([]);
  });

  it('stay in an image that took the place of one', async () => {
    record();
    const [vda = '', vdb = ''] = images;
    fs.copyFileSync(vda, `${vda}.copy`);
    fs.renameSync(`${vda}.copy`, vda);
    expect(await session.undo()).toEqual([]);
    expect(await names(vda)).toEqual([NAME]);
    expect(await names(vdb)).toEqual([]);
  });

  it('stay where older ones rely on them, which is told', async () => {
    const [vda = '', vdb = ''] = images;
    await run('qemu-img', ['bitmap', '--add', '--disable', '-f', 'qcow2', vda, 'older']);
    record();
    expect(await session.undo()).toEqual([]);
    expect((await names(vda)).sort()).toEqual([NAME, 'older']);
    expect(await names(vdb)).toEqual([]);
    expect(session.reporter.messages).toEqual([
      `warn: mail01 is gone, and the older bitmaps in ${vda} need it: the bitmap ${NAME} stays in there (qemu-img bitmap --remove)`,
    ]);
  });

  it('stay in an image that a program has open, which is told', async () => {
    record();
    const [vda = ''] = images;
    await whileOpenForWriting({ path: vda, format: 'qcow2' }, async () => {
      expect(await session.undo()).toEqual([]);
    });
    expect(await names(vda)).toEqual([NAME]);
    expect(session.reporter.messages).toEqual([
      expect.stringContaining(`mail01 is gone, and a program has ${vda} open`),
    ]);
  });
});

it('a checkpoint of a VM that is off is not deleted while a program has an image open', async () => {
  const disks = images.map((image, number) => ({
    target: `vd${'ab'[number]}`,
    path: image,
    format: 'qcow2',
  }));
  const { uuid } = await libvirt.define('off', disks);
  await libvirt.virsh.call('destroy', ['--domain', uuid]);
  record(uuid);
  const [vda = ''] = images;
  await whileOpenForWriting({ path: vda, format: 'qcow2' }, async () => {
    expect((await session.undo()).map(({ message }) => message)).toEqual([
      `checkpoint ${NAME} of mail01 cannot be deleted: a program has ${vda} open`,
    ]);
  });
  expect(await session.undo()).toEqual([]);
  for (const image of images) expect(await names(image)).toEqual([]);
});
