import * as fs from 'node:fs';
import * as path from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import type { LiveDisk } from '../../src/chain/live-chain.js';
import { changeOf } from '../../src/chain/live-check.js';
import type { Disk } from '../../src/libvirt/domain.js';
import { identityOf } from '../../src/snapshot/image-identity.js';
import { temporaryDirectory } from '../support/images.js';

let directory: string;
const place = (name: string) => path.join(directory, name);

beforeEach(() => {
  directory = temporaryDirectory();
  for (const name of ['base', 'lower', 'upper']) fs.writeFileSync(place(name), '');
});

afterEach(() => fs.rmSync(directory, { recursive: true }));

function known(): LiveDisk {
  const one = (name: string) => ({ path: place(name), identity: identityOf(place(name))! });
  const definition = { type: 'file', source: '' };
  const base = { ...one('base'), format: 'raw', definition } as const;
  return { target: 'vda', base, layers: [one('lower'), one('upper')], copy: null };
}

/** As libvirt has it, top first. */
function disk(...names: string[]): Disk {
  const [top, ...below] = names.map(place);
  return { target: 'vda', path: top, below } as unknown as Disk;
}

describe('what became of the layers of a disk', () => {
  it('is nothing while each file is the same and in its place, whatever the base lies on', () => {
    expect(changeOf(disk('upper', 'lower', 'base'), known())).toBeUndefined();
    expect(changeOf(disk('upper', 'lower', 'base', 'golden'), known())).toBeUndefined();
  });

  it.each(['base', 'lower', 'upper'])('is told when another file has the name of %s', (name) => {
    const before = known();
    fs.renameSync(place(name), place('away'));
    fs.writeFileSync(place(name), '');
    expect(changeOf(disk('upper', 'lower', 'base'), before)).toBe(
      `${place(name)} was replaced by another file`,
    );
  });

  it.each([
    [['lower', 'base'], 'it is on lower where upper was'],
    [['upper', 'base'], 'it is on base where lower was'],
    [['upper', 'lower', 'golden'], 'it is on golden where base was'],
    [['upper', 'lower'], 'it is on nothing where base was'],
    [['new', 'upper', 'lower', 'base'], 'another snapshot, new, lies on it'],
    [['new', 'upper', 'base'], 'it is on new where upper was'],
  ])('is told when it is on %j', (names, sentence) => {
    const told = changeOf(disk(...names), known());
    expect(told?.replaceAll(`${directory}/`, '')).toBe(sentence);
  });
});
