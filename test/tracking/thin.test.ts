import * as fs from 'node:fs';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { Virsh } from '../../src/libvirt/virsh.js';
import { LVM_KIND, OVERLAY_KIND } from '../../src/snapshot/watched-kinds.js';
import { thinObstacle } from '../../src/tracking/thin.js';
import { programFirst } from '../support/dumps.js';
import { temporaryDirectory } from '../support/images.js';

type Disk = Parameters<typeof thinObstacle>[0];

const OTHER = 'its image is not the volume itself, but lies in it';
const image = { path: '/dev/vg/lv', format: 'raw', device: true, fileSize: 0 };

function snapshot(thin: boolean, kind: string = LVM_KIND) {
  const data = { session: 's', target: 'vda', group: 'vg', name: 'cm', thin, uuid: 'mine' };
  return { seq: 1, kind, data: { ...data, origin: { name: 'lv', uuid: 'origin' } }, done: true };
}

describe('a disk of which a thin pool can tell', () => {
  const { PATH } = process.env;
  let directory: string;
  beforeEach(() => {
    directory = temporaryDirectory();
    programFirst(directory, 'thin_delta', 'exit 1');
    process.env.PATH = directory;
  });
  afterEach(() => {
    process.env.PATH = PATH;
    fs.rmSync(directory, { recursive: true });
  });

  it.each<[string, Partial<Disk>, string | undefined]>([
    ['a thin volume that is frozen', {}, undefined],
    ['a live one', { snapshot: undefined, live: { virsh: new Virsh({}), uuid: '' } }, undefined],
    ['none that is neither', { snapshot: undefined }, 'no LVM snapshot freezes it'],
    [
      'none that is frozen otherwise',
      { snapshot: snapshot(true, OVERLAY_KIND) },
      'no LVM snapshot freezes it',
    ],
    ['none on a thick volume', { snapshot: snapshot(false) }, 'it is on a thick volume'],
    ['none in a file', { layers: [{ ...image, device: false }] }, OTHER],
    ['none in a qcow2', { layers: [{ ...image, format: 'qcow2' }] }, OTHER],
    ['none with a backing file', { layers: [image, image] }, OTHER],
    ['none with its data elsewhere', { layers: [{ ...image, dataFile: '/data' } as never] }, OTHER],
  ])('is %s', (_, given, reason) => {
    programFirst(directory, 'dmsetup', 'exit 1');
    expect(thinObstacle({ layers: [image], snapshot: snapshot(true), ...given })).toBe(reason);
  });

  it('needs each of its programs', () => {
    const ask = () => thinObstacle({ layers: [image], snapshot: snapshot(true) });
    expect(ask).toThrow('dmsetup is not installed');
    programFirst(directory, 'dmsetup', 'exit 1');
    fs.rmSync(`${directory}/thin_delta`);
    expect(ask).toThrow('thin_delta is not installed');
  });
});
