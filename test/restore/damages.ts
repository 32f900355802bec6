import { execFileSync } from 'node:child_process';
import * as fs from 'node:fs';
import * as path from 'node:path';
import { chunkFile, testBytes, xxh64 } from '../support/trees.js';
import { CHUNK, CHUNKS, type DemoTree, editManifest, flipBit, swap } from './demo-tree.js';

/** One kind of damage to a demo tree, and what must be said about it. */
export interface DamageCase {
  readonly name: string;
  readonly damage: (tree: DemoTree) => void;
  /** What restore says; undefined: it does not concern the disk's content, so restore works. */
  readonly restore: RegExp | undefined;
  /** What verify says, in order: kind and path of each problem. */
  readonly verify: readonly (readonly [kind: string, path: string])[];
}

function range(first: number, end: number): number[] {
  return Array.from({ length: end - first }, (_, i) => first + i);
}

const chunkProblem = (kind: string, ...chunks: number[]) =>
  chunks.map((chunk) => [kind, chunkFile('vda', chunk)] as const);

const contentHash = (tree: DemoTree, chunk: number) =>
  xxh64(tree.content.subarray(chunk * CHUNK, (chunk + 1) * CHUNK));

/** /dev/zero, of which there is any amount: see Documentation/admin-guide/devices.txt of Linux. */
const ZERO_DEVICE = ['1', '5'];

/** Rewrites the line of a chunk in the sums file, as somebody who can write to the backup might. */
function forgeSum(tree: DemoTree, chunk: number, content: Uint8Array): void {
  const file = path.join(tree.root, 'vda.xxh64');
  fs.writeFileSync(file, fs.readFileSync(file, 'latin1').replace(contentHash(tree, chunk), xxh64(content)));
}

export const CHUNK_DAMAGES: readonly DamageCase[] = [
  {
    name: 'a flipped bit',
    damage: ({ chunk }) => flipBit(chunk(7)),
    restore: /vda\/000000\/00000007 is corrupt: expected hash [0-9a-f]{16}, found [0-9a-f]{16}$/,
    verify: chunkProblem('hash', 7),
  },
  {
    name: 'a flipped bit in a chunk of zeros',
    damage: ({ chunk }) => flipBit(chunk(200), CHUNK - 1),
    restore: /000000c8 is corrupt/,
    verify: chunkProblem('hash', 200),
  },
  {
    name: 'a chunk that is cut off',
    damage: ({ chunk }) => fs.truncateSync(chunk(8), CHUNK - 1),
    restore: /00000008 has 4095 bytes instead of 4096$/,
    verify: chunkProblem('size', 8),
  },
  {
    name: 'an empty chunk',
    damage: ({ chunk }) => fs.truncateSync(chunk(8), 0),
    restore: /00000008 has 0 bytes instead of 4096$/,
    verify: chunkProblem('size', 8),
  },
  {
    name: 'a chunk with something after it',
    damage: ({ chunk }) => fs.appendFileSync(chunk(8), 'x'),
    restore: /00000008 has 4097 bytes instead of 4096$/,
    verify: chunkProblem('size', 8),
  },
  {
    name: 'a last chunk that was filled up',
    damage: ({ chunk }) => fs.truncateSync(chunk(CHUNKS - 1), CHUNK),
    restore: /000002bb has 4096 bytes instead of 1234$/,
    verify: chunkProblem('size', CHUNKS - 1),
  },
  {
    name: 'a missing chunk',
    damage: ({ chunk }) => fs.rmSync(chunk(9)),
    restore: /00000009 is missing \(expected hash [0-9a-f]{16}\)$/,
    verify: chunkProblem('missing', 9),
  },
  {
    name: 'a missing directory of chunks',
    damage: ({ chunk }) => fs.rmSync(path.dirname(chunk(256)), { recursive: true }),
    restore: /000001\/00000[12][0-9a-f]{2} is missing/,
    verify: chunkProblem('missing', ...range(256, 512)),
  },
  {
    name: 'a missing disk',
    damage: ({ root }) => fs.rmSync(path.join(root, 'vda'), { recursive: true }),
    restore: /is missing/,
    verify: chunkProblem('missing', ...range(0, CHUNKS)),
  },
  {
    name: 'swapped chunks',
    damage: ({ chunk }) => swap(chunk(10), chunk(11)),
    restore: /0000000[ab] is corrupt/,
    verify: chunkProblem('hash', 10, 11),
  },
  {
    name: 'a chunk that is a link to a good copy of it',
    damage: ({ chunk, beside }) => {
      fs.renameSync(chunk(12), beside('copy'));
      fs.symlinkSync(beside('copy'), chunk(12));
    },
    restore: /0000000c is a link /,
    verify: chunkProblem('unsafe', 12),
  },
  {
    name: 'a chunk that is a link to a secret, with a forged sum',
    damage: (tree) => {
      const secret = testBytes(CHUNK, 99);
      fs.writeFileSync(tree.beside('secret'), secret);
      fs.rmSync(tree.chunk(12));
      fs.symlinkSync('../../../secret', tree.chunk(12));
      forgeSum(tree, 12, secret);
    },
    restore: /0000000c is a link /,
    verify: chunkProblem('unsafe', 12),
  },
  {
    name: 'a directory of chunks that is a link',
    damage: ({ chunk, beside }) => {
      fs.renameSync(path.dirname(chunk(512)), beside('elsewhere'));
      fs.symlinkSync(beside('elsewhere'), path.dirname(chunk(512)));
    },
    restore: /is below a link or a file /,
    verify: chunkProblem('unsafe', ...range(512, CHUNKS)),
  },
  {
    name: 'a chunk that is a directory',
    damage: ({ chunk }) => {
      fs.rmSync(chunk(13));
      fs.mkdirSync(chunk(13));
    },
    restore: /0000000d is no plain file /,
    verify: chunkProblem('unsafe', 13),
  },
  {
    name: 'a chunk that is a FIFO',
    damage: ({ chunk }) => {
      fs.rmSync(chunk(13));
      execFileSync('mkfifo', [chunk(13)]);
    },
    restore: /0000000d is no plain file /,
    verify: chunkProblem('unsafe', 13),
  },
  {
    name: 'a chunk that is a device',
    damage: ({ chunk }) => {
      fs.rmSync(chunk(13));
      execFileSync('mknod', [chunk(13), 'c', ...ZERO_DEVICE]);
    },
    restore: /0000000d is no plain file /,
    verify: chunkProblem('unsafe', 13),
  },
  {
    name: 'a file in the place of a directory of chunks',
    damage: ({ chunk }) => {
      fs.rmSync(path.dirname(chunk(512)), { recursive: true });
      fs.writeFileSync(path.dirname(chunk(512)), '');
    },
    restore: /is below a link or a file /,
    verify: chunkProblem('unsafe', ...range(512, CHUNKS)),
  },
];

export const TREE_DAMAGES: readonly DamageCase[] = [
  {
    name: 'a disk that is a link',
    damage: ({ root, beside }) => {
      fs.renameSync(path.join(root, 'vda'), beside('elsewhere'));
      fs.symlinkSync(beside('elsewhere'), path.join(root, 'vda'));
    },
    restore: /mail01\/vda is a link or no directory$/,
    verify: [['disk', 'vda']],
  },
  {
    name: 'missing sums',
    damage: ({ root }) => fs.rmSync(path.join(root, 'vda.xxh64')),
    restore: /vda\.xxh64 is missing$/,
    verify: [['sums', 'vda.xxh64']],
  },
  {
    name: 'sums that are cut off',
    damage: ({ root }) => fs.truncateSync(path.join(root, 'vda.xxh64'), 38 * 600),
    restore: /vda\.xxh64 has 22800 bytes instead of 26600/,
    verify: [['sums', 'vda.xxh64']],
  },
  {
    name: 'sums of another disk',
    damage: ({ root }) => {
      const file = path.join(root, 'vda.xxh64');
      fs.writeFileSync(file, fs.readFileSync(file, 'latin1').replaceAll('vda/', 'vdb/'));
    },
    restore: /vda\.xxh64 is damaged in line 1$/,
    verify: Array.from({ length: CHUNKS }, () => ['sums', 'vda.xxh64'] as const),
  },
  {
    name: 'a flipped bit in a sum',
    damage: (tree) => forgeSum(tree, 20, Buffer.from('anything')),
    restore: /00000014 is corrupt/,
    verify: chunkProblem('hash', 20),
  },
  {
    name: 'a manifest of a smaller disk',
    damage: ({ root }) =>
      editManifest(root, (manifest) => {
        Object.assign((manifest.disks as object[])[0]!, { size: 600 * CHUNK, chunkCount: 600 });
      }),
    restore: /vda\.xxh64 has 26600 bytes instead of 22800/,
    verify: [
      ['sums', 'vda.xxh64'],
      ...range(600, CHUNKS).map((chunk) => ['stray', chunkFile('vda', chunk)] as const),
    ],
  },
  {
    name: 'a manifest with another chunk size',
    damage: ({ root }) =>
      editManifest(root, (manifest) => {
        Object.assign((manifest.disks as object[])[0]!, { size: 700 * 8192, chunkSize: 8192 });
      }),
    restore: /has (4096|1234) bytes instead of 8192$/,
    verify: chunkProblem('size', ...range(0, CHUNKS)),
  },
  {
    name: 'a manifest of another VM',
    damage: ({ root }) =>
      editManifest(root, (manifest) => {
        Object.assign(manifest, { name: 'web01', uuid: '11111111-2222-3333-4444-555555555555' });
      }),
    restore: undefined,
    verify: [
      ['xml', 'mail01.xml'],
      ['xml', 'mail01.xml'],
    ],
  },
  {
    name: 'domain XML that is cut off',
    damage: ({ root }) => fs.truncateSync(path.join(root, 'mail01.xml'), 40),
    restore: undefined,
    verify: [['xml', 'mail01.xml']],
  },
  {
    name: 'missing domain XML',
    damage: ({ root }) => fs.rmSync(path.join(root, 'mail01.xml')),
    restore: undefined,
    verify: [['xml', 'mail01.xml']],
  },
  {
    name: 'domain XML that is a link',
    damage: ({ root, beside }) => {
      fs.renameSync(path.join(root, 'mail01.xml'), beside('mail01.xml'));
      fs.symlinkSync('../mail01.xml', path.join(root, 'mail01.xml'));
    },
    restore: undefined,
    verify: [['xml', 'mail01.xml']],
  },
  {
    name: 'a missing extra file',
    damage: ({ root }) => fs.rmSync(path.join(root, 'nvram.fd')),
    restore: undefined,
    verify: [['extra', 'nvram.fd']],
  },
  {
    name: 'an extra file of another size',
    damage: ({ root }) => fs.appendFileSync(path.join(root, 'nvram.fd'), 'x'),
    restore: undefined,
    verify: [['extra', 'nvram.fd']],
  },
  {
    name: 'an extra file that is a device',
    damage: ({ root }) => {
      fs.rmSync(path.join(root, 'nvram.fd'));
      execFileSync('mknod', [path.join(root, 'nvram.fd'), 'c', ...ZERO_DEVICE]);
    },
    restore: undefined,
    verify: [['extra', 'nvram.fd']],
  },
  {
    name: 'stray files',
    damage: ({ root }) => {
      const strays = [
        'notes.txt',
        'vda/lost',
        'vda/000003',
        'vda/000000/00000001.part',
        'vda/000001/00000001',
      ];
      for (const stray of strays) fs.writeFileSync(path.join(root, stray), '');
    },
    restore: undefined,
    verify: [
      ['stray', 'notes.txt'],
      ['stray', 'vda/000003'],
      ['stray', 'vda/lost'],
      ['stray', 'vda/000000/00000001.part'],
      ['stray', 'vda/000001/00000001'],
    ],
  },
];

const onManifest = (edit: (manifest: Record<string, unknown>) => void) => (tree: DemoTree) =>
  editManifest(tree.root, edit);

const MANIFEST = [['manifest', 'manifest.json']] as const;

export const MANIFEST_DAMAGES: readonly DamageCase[] = [
  {
    name: 'no manifest',
    damage: ({ root }) => fs.rmSync(path.join(root, 'manifest.json')),
    restore: /manifest\.json is missing$/,
    verify: MANIFEST,
  },
  {
    name: 'a manifest that is cut off',
    damage: ({ root }) => fs.truncateSync(path.join(root, 'manifest.json'), 200),
    restore: /manifest\.json is not valid JSON$/,
    verify: MANIFEST,
  },
  {
    name: 'a manifest that is a link',
    damage: ({ root, beside }) => {
      fs.renameSync(path.join(root, 'manifest.json'), beside('manifest.json'));
      fs.symlinkSync('../manifest.json', path.join(root, 'manifest.json'));
    },
    restore: /manifest\.json is no plain file$/,
    verify: MANIFEST,
  },
  {
    name: 'a tree of a newer format',
    damage: onManifest((manifest) => void Object.assign(manifest, { version: 3 })),
    restore: /manifest\.json has format version 3, this chunkmount knows 2$/,
    verify: MANIFEST,
  },
  {
    name: 'a disk called ..',
    damage: onManifest(
      (manifest) => void Object.assign((manifest.disks as object[])[0]!, { target: '..', sums: '...xxh64' }),
    ),
    restore: /manifest\.json is damaged: disks\.0\.target: is no disk target$/,
    verify: MANIFEST,
  },
  {
    name: 'sums at an absolute path',
    damage: onManifest(
      (manifest) => void Object.assign((manifest.disks as object[])[0]!, { sums: '/etc/passwd' }),
    ),
    restore: /manifest\.json is damaged: disks\.0: sums is not the name of its sums file$/,
    verify: MANIFEST,
  },
];
