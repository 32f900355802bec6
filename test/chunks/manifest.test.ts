import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import {
  formatManifest,
  MAX_DISKS,
  type Manifest,
  type ManifestDisk,
  manifestVersion,
  parseManifest,
  topLevelNames,
} from '../../src/chunks/manifest.js';
import { isName, isTarget } from '../../src/chunks/names.js';
import { ChunkmountError, exitCodeOf } from '../../src/errors.js';

const KIB = 1024;

const manifest: Manifest = {
  format: 'chunkmount-tree',
  version: 1,
  name: 'mail01',
  uuid: 'c7a5fdbd-edaf-9455-926a-d65c16db1809',
  snapshotTime: '2024-05-31T22:15:00Z',
  consistency: 'crash',
  toolVersion: '0.1.0',
  domainXml: 'mail01.xml',
  disks: [
    {
      target: 'vda',
      size: 1000 * KIB,
      chunkSize: 256 * KIB,
      chunkCount: 4,
      directory: 'vda',
      layout: 'chunkmount',
      zeroChunks: 'keep',
      hash: 'xxh64',
      sums: 'vda.xxh64',
      sourceFormat: 'qcow2',
      bus: 'virtio',
    },
  ],
  extras: [{ file: 'nvram.fd', kind: 'nvram', size: 540672 }],
};
const [vda] = manifest.disks;
const CHUNKFS: ManifestDisk = { ...vda!, layout: 'chunkfs', directory: 'mail01_vda' };

/** The manifest's text with some of its values replaced. */
function changed(changes: object): string {
  return JSON.stringify({ ...manifest, ...changes });
}

function changedDisk(changes: object): string {
  return changed({ disks: [{ ...vda, ...changes }] });
}

function refusal(text: string, file?: string): ChunkmountError {
  try {
    parseManifest(text, file);
  } catch (error) {
    expect(error).toBeInstanceOf(ChunkmountError);
    expect(exitCodeOf(error)).toBe(4);
    return error as ChunkmountError;
  }
  throw new Error(`accepted: ${text.slice(0, 200)}`);
}

describe('formatManifest', () => {
  it('writes the keys in the order of the tree format', () => {
    const shuffled = Object.fromEntries(Object.entries(manifest).reverse()) as unknown as Manifest;
    expect(formatManifest(shuffled)).toBe(formatManifest(manifest));
    expect(formatManifest(manifest)).toMatch(
      /^\{\n {2}"format": "chunkmount-tree",\n {2}"version": 1,\n.*\}\n$/s,
    );
  });

  it('gives what parseManifest reads back', () => {
    expect(parseManifest(formatManifest(manifest))).toEqual(manifest);
    const image: Manifest = {
      ...manifest,
      uuid: null,
      domainXml: null,
      disks: [{ ...vda!, bus: null }],
      extras: [],
    };
    expect(parseManifest(formatManifest(image))).toEqual(image);
    for (const disks of [[CHUNKFS], [vda!, { ...disk('vdb'), zeroChunks: 'skip' as const }]]) {
      const newer: Manifest = { ...manifest, version: 2, disks };
      expect(parseManifest(formatManifest(newer))).toEqual(newer);
    }
  });

  it('is version 1 for all that version 1 can say, and says nothing else then', () => {
    expect(manifestVersion([vda!])).toBe(1);
    expect(manifestVersion([vda!, CHUNKFS])).toBe(2);
    expect(manifestVersion([vda!, { ...vda!, zeroChunks: 'skip' }])).toBe(2);
    expect(formatManifest(manifest)).not.toMatch(/layout|zeroChunks|directory/);
  });
});

describe('parseManifest', () => {
  it('ignores keys that it does not know', () => {
    expect(parseManifest(changed({ comment: 'x', __proto__: { name: '..' } }))).toEqual(manifest);
  });

  it.each([0, 1, 256 * KIB - 1, 256 * KIB, 256 * KIB + 1])('accepts a disk of %i bytes', (size) => {
    const chunkCount = Math.ceil(size / (256 * KIB));
    expect(parseManifest(changedDisk({ size, chunkCount })).disks[0]).toMatchObject({ size, chunkCount });
    refusal(changedDisk({ size, chunkCount: chunkCount + 1 }));
    refusal(changedDisk({ size, chunkCount: chunkCount - 1 }));
  });

  it('calls a newer format newer, whatever else is in it', () => {
    const error = refusal('{"format": "chunkmount-tree", "version": 3}', '/backup/mail01/manifest.json');
    expect(error.message).toBe('/backup/mail01/manifest.json has format version 3, this chunkmount knows 2');
    expect(error.hint).toBe('install a newer chunkmount');
  });

  it.each([
    ['no JSON', '{'],
    ['null', 'null'],
    ['an array', '[]'],
    ['another format', changed({ format: 'other' })],
    ['version 0', changed({ version: 0 })],
    ['a version that is text', changed({ version: '1' })],
    ['a version that is no integer', changed({ version: 1.5 })],
    ['no disks', changed({ disks: [] })],
    ['disks that are no list', changed({ disks: { 0: vda } })],
    ['missing extras', changed({ extras: undefined })],
    ['a name with ..', changed({ name: '..' })],
    ['a name with a slash', changed({ name: 'a/b' })],
    ['an empty name', changed({ name: '' })],
    ['a name with a newline', changed({ name: 'mail01\n' })],
    ['no UUID', changed({ uuid: 'x' })],
    ['a time without zone', changed({ snapshotTime: '2024-05-31T22:15:00' })],
    ['February 30', changed({ snapshotTime: '2024-02-30T22:15:00Z' })],
    ['24 o’clock', changed({ snapshotTime: '2024-02-28T24:00:00Z' })],
    ['an unknown consistency', changed({ consistency: 'perfect' })],
    ['a tool version with control characters', changed({ toolVersion: '1\x1b[2J' })],
    ['XML outside the tree', changed({ domainXml: '../mail01.xml' })],
    ['XML at an absolute path', changed({ domainXml: '/etc/libvirt/qemu/mail01.xml' })],
    ['XML that is the manifest', changed({ domainXml: 'manifest.json' })],
    [
      'an extra file outside the tree',
      changed({ extras: [{ file: '../../etc/shadow', kind: 'nvram', size: 1 }] }),
    ],
    ['an extra file in the place of a disk', changed({ extras: [{ file: 'vda', kind: 'nvram', size: 1 }] })],
    [
      'an extra file in the place of the sums',
      changed({ extras: [{ file: 'vda.xxh64', kind: 'nvram', size: 1 }] }),
    ],
    [
      'an extra file in the place of the manifest',
      changed({ extras: [{ file: 'manifest.json', kind: 'nvram', size: 1 }] }),
    ],
    ['an unknown kind of extra', changed({ extras: [{ file: 'x', kind: 'socket', size: 1 }] })],
    ['an extra of negative size', changed({ extras: [{ file: 'x', kind: 'state', size: -1 }] })],
    ['a target with ..', changedDisk({ target: '..', sums: '...xxh64' })],
    ['a target with a slash', changedDisk({ target: 'a/b', sums: 'a/b.xxh64' })],
    ['the sums of another disk', changedDisk({ sums: 'vdb.xxh64' })],
    ['sums outside the tree', changedDisk({ sums: '../vda.xxh64' })],
    ['another hash', changedDisk({ hash: 'md5' })],
    ['a chunk size of 0', changedDisk({ chunkSize: 0, chunkCount: 0 })],
    ['a chunk size that is no power of two', changedDisk({ chunkSize: 300 * KIB })],
    ['a chunk size of 2 KiB', changedDisk({ chunkSize: 2 * KIB, chunkCount: 500 })],
    ['a chunk size of 32 MiB', changedDisk({ chunkSize: 32 * KIB * KIB, chunkCount: 1 })],
    ['half a byte', changedDisk({ size: 0.5, chunkCount: 1 })],
    ['a negative size', changedDisk({ size: -1, chunkCount: 0 })],
    ['a size as text', changedDisk({ size: '1024000' })],
    [
      'a size beyond exact integers',
      changedDisk({ size: 2 ** 53, chunkSize: 16 * KIB * KIB, chunkCount: 2 ** 29 }),
    ],
    ['more than 2^32 chunks', changedDisk({ size: 2 ** 45, chunkSize: 4 * KIB, chunkCount: 2 ** 33 })],
    ['infinity', changedDisk({}).replace('"size":1024000', '"size":1e999')],
    ['a format with a comma', changedDisk({ sourceFormat: 'raw,file=/etc/passwd' })],
    ['a layout that version 1 does not have', changed({ disks: [CHUNKFS] })],
    ['an unknown layout', changed({ version: 2, disks: [{ ...CHUNKFS, layout: 'other' }] })],
    ["another disk's directory", changed({ version: 2, disks: [{ ...CHUNKFS, directory: 'mail01_vdb' }] })],
    ['a directory outside', changed({ version: 2, disks: [{ ...CHUNKFS, directory: '../mail01_vda' }] })],
    ['skipped chunks of zeros in version 1', changedDisk({ zeroChunks: 'skip' })],
    ['two disks of one target', changed({ disks: [vda, vda] })],
    ['too many disks', changed({ disks: Array.from({ length: MAX_DISKS + 1 }, (_, i) => disk(`disk${i}`)) })],
    ['a manifest of 5 MiB', changed({ comment: 'x'.repeat(5 * KIB * KIB) })],
  ])('refuses %s', (_, text) => {
    expect(refusal(text).message).toMatch(/^manifest\.json (is|has) /);
  });

  it('accepts as many disks as it says', () => {
    const disks = Array.from({ length: MAX_DISKS }, (_, i) => disk(`disk${i}`));
    expect(parseManifest(formatManifest({ ...manifest, disks })).disks).toHaveLength(MAX_DISKS);
  });

  it('names what is wrong, and shows nothing of a hostile value', () => {
    expect(refusal(changedDisk({ chunkCount: 5 })).message).toBe(
      'manifest.json is damaged: disks.0: size, chunkSize and chunkCount do not add up',
    );
    expect(refusal(changedDisk({ hash: '\x1b]0;owned\x07' })).message).toBe(
      'manifest.json is damaged: disks.0.hash: is not "xxh64"',
    );
  });

  it('survives any text', () => {
    fc.assert(fc.property(fc.oneof(fc.string(), fc.json()), (text) => void refusal(text)));
  });

  it('refuses or makes sense of any change to a manifest', () => {
    const value = fc.oneof(
      fc.jsonValue(),
      fc.constantFrom(0, 1, -1, 2 ** 53, 2 ** 32, '', '..', '/', 'vda', 'vdb.xxh64', null),
    );
    const paths = [...Object.keys(manifest), ...Object.keys(vda!).map((key) => `disks.${key}`)];
    fc.assert(
      fc.property(fc.dictionary(fc.constantFrom(...paths), value, { maxKeys: 3 }), (changes) => {
        const ofManifest = Object.entries(changes).filter(([key]) => !key.startsWith('disks.'));
        const ofDisk = Object.entries(changes).flatMap(([key, to]) =>
          key.startsWith('disks.') ? [[key.slice(6), to]] : [],
        );
        const disks = [{ ...vda, ...Object.fromEntries(ofDisk) }];
        const text = changed({ disks, ...Object.fromEntries(ofManifest) });
        let parsed: Manifest;
        try {
          parsed = parseManifest(text);
        } catch (error) {
          expect(exitCodeOf(error)).toBe(4);
          return;
        }
        expectSane(parsed);
      }),
      { numRuns: 2000 },
    );
  });
});

function disk(target: string): ManifestDisk {
  return { ...vda!, target, directory: target, sums: `${target}.xxh64` };
}

function expectSane(parsed: Manifest): void {
  expect(isName(parsed.name)).toBe(true);
  const names = topLevelNames(parsed);
  expect(names.every(isName)).toBe(true);
  expect(new Set(names).size).toBe(names.length);
  for (const { target, size, chunkSize, chunkCount } of parsed.disks) {
    expect(isTarget(target)).toBe(true);
    expect(chunkCount).toBe(Math.ceil(size / chunkSize));
  }
  expect(parseManifest(formatManifest(parsed))).toEqual(parsed);
}
