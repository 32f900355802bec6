import * as fs from 'node:fs';
import * as path from 'node:path';
import { chunkFile, testBytes, writeTree } from '../support/trees.js';
import { temporaryDirectory } from './built.js';

export const KIB = 1024;
export const MIB = 1024 * KIB;
export const CHUNK = 4 * KIB;

/** 700 chunks, in three directories, the last one short; the chunks from 100 up to 300 are zeros. */
export const DEMO_SIZE = 699 * CHUNK + 1234;
export const ZEROS: readonly [number, number] = [100, 300];
export const CHUNKS = 700;

export const UUID = 'c7a5fdbd-edaf-9455-926a-d65c16db1809';
export const XML = `<domain type='kvm'>\n  <name>mail01</name>\n  <uuid>${UUID}</uuid>\n</domain>\n`;

export interface DemoTree {
  readonly directory: string;
  /** The tree. */
  readonly root: string;
  /** The disk's bytes. */
  readonly content: Buffer;
  /** Path of a chunk. */
  readonly chunk: (index: number) => string;
  /** A path beside the tree. */
  readonly beside: (name: string) => string;
}

export function demoContent(seed = 1): Buffer {
  return testBytes(DEMO_SIZE, seed, [[ZEROS[0] * CHUNK, ZEROS[1] * CHUNK]]);
}

/** A tree of a VM with one disk, gone after the test. */
export function demoTree(content: Buffer = demoContent(), chunkSize = CHUNK): DemoTree {
  const directory = temporaryDirectory();
  const root = path.join(directory, 'mail01');
  const extras = [{ file: 'nvram.fd', kind: 'nvram', content: testBytes(5000, 9) }] as const;
  writeTree(root, {
    name: 'mail01',
    uuid: UUID,
    xml: XML,
    extras,
    disks: [{ target: 'vda', content, chunkSize }],
  });
  const chunk = (index: number) => path.join(root, chunkFile('vda', index));
  return { directory, root, content, chunk, beside: (name) => path.join(directory, name) };
}

/** Changes one bit. */
export function flipBit(file: string, at = 100): void {
  const data = fs.readFileSync(file);
  data[at]! ^= 4;
  fs.writeFileSync(file, data);
}

export function swap(a: string, b: string): void {
  fs.renameSync(a, `${a}.tmp`);
  fs.renameSync(b, a);
  fs.renameSync(`${a}.tmp`, b);
}

/** Rewrites the manifest. */
export function editManifest(root: string, edit: (manifest: Record<string, unknown>) => void): void {
  const file = path.join(root, 'manifest.json');
  const manifest = JSON.parse(fs.readFileSync(file, 'utf8')) as Record<string, unknown>;
  edit(manifest);
  fs.writeFileSync(file, JSON.stringify(manifest));
}
