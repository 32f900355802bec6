import * as fs from 'node:fs';
import * as path from 'node:path';
import xxhash from 'xxhash-wasm';

const { h64Raw } = await xxhash();

/**
 * Makes trees by the letter of the format's description, with nothing of the code under test: a directory per 256 chunks, names
 * in hex, a sums file as xxhsum writes it.
 */
export interface TestDisk {
  readonly target: string;
  /** The disk's content, or the raw image that holds it. */
  readonly content: Uint8Array | { readonly image: string };
  readonly chunkSize?: number;
  /** In the layout of chunkfs, or without chunks of zeros: a tree of version 2. */
  readonly look?: 'chunkfs' | 'skip' | undefined;
}

export interface TestTree {
  readonly name?: string;
  readonly uuid?: string | null;
  /** Domain XML; none if undefined. */
  readonly xml?: string;
  readonly disks: readonly TestDisk[];
  readonly extras?: readonly {
    readonly file: string;
    readonly kind: 'nvram' | 'state';
    readonly content: Uint8Array;
  }[];
}

const KIB = 1024;

/** 16 lower-case hex digits. */
export function xxh64(data: Uint8Array): string {
  return h64Raw(data).toString(16).padStart(16, '0');
}

function hex(value: number, digits: number): string {
  return value.toString(16).padStart(digits, '0');
}

/** `vda/000001/00000123`, as the format's description has it. */
export function chunkFile(target: string, index: number): string {
  return `${target}/${hex(index >> 8, 6)}/${hex(index, 8)}`;
}

/** `mail01_vda/00/00/00/00/00/00/01/23`, as C chunkfs has it below a directory of virt-backup. */
function chunkfsFile(name: string, target: string, index: number): string {
  return `${name}_${target}/${hex(index, 16).match(/../g)!.join('/')}`;
}

function writeDisk(
  directory: string,
  name: string,
  disk: TestDisk,
): { size: number; chunkSize: number; chunkCount: number } {
  const { target, content, chunkSize = 256 * KIB, look } = disk;
  const file = (index: number) =>
    look === 'chunkfs' ? chunkfsFile(name, target, index) : chunkFile(target, index);
  const fd = 'image' in content ? fs.openSync(content.image, 'r') : undefined;
  const size = fd === undefined ? (content as Uint8Array).byteLength : fs.fstatSync(fd).size;
  const chunkCount = Math.ceil(size / chunkSize);
  const sums = fs.openSync(path.join(directory, `${target}.xxh64`), 'w');
  fs.mkdirSync(path.join(directory, look === 'chunkfs' ? `${name}_${target}` : target));
  for (let index = 0; index < chunkCount; index++) {
    if (index % 256 === 0) fs.mkdirSync(path.dirname(path.join(directory, file(index))), { recursive: true });
    const start = index * chunkSize;
    const end = Math.min(start + chunkSize, size);
    let chunk: Uint8Array;
    if (fd === undefined) {
      chunk = (content as Uint8Array).subarray(start, end);
    } else {
      chunk = Buffer.alloc(end - start);
      fs.readSync(fd, chunk, 0, end - start, start);
    }
    const skipped = look === 'skip' && chunk.every((byte) => byte === 0);
    if (!skipped) fs.writeFileSync(path.join(directory, file(index)), chunk);
    fs.writeSync(sums, skipped ? `#${xxh64(chunk)} ${file(index)}\n` : `${xxh64(chunk)}  ${file(index)}\n`);
  }
  fs.closeSync(sums);
  if (fd !== undefined) fs.closeSync(fd);
  return { size, chunkSize, chunkCount };
}

/** What the manifest of version 2 says more of a disk. */
function shapeOf(name: string, { target, look }: TestDisk): object {
  return {
    directory: look === 'chunkfs' ? `${name}_${target}` : target,
    layout: look === 'chunkfs' ? 'chunkfs' : 'chunkmount',
    zeroChunks: look === 'skip' ? 'skip' : 'keep',
  };
}

/** Makes a tree in `directory`, which must not exist. Returns the manifest as it was written. */
export function writeTree(directory: string, tree: TestTree): Record<string, unknown> {
  const { name = 'demo', uuid = null, xml, extras = [] } = tree;
  fs.mkdirSync(directory, { recursive: true });
  if (xml !== undefined) fs.writeFileSync(path.join(directory, `${name}.xml`), xml);
  for (const { file, content } of extras) fs.writeFileSync(path.join(directory, file), content);
  const version = tree.disks.every(({ look }) => look === undefined) ? 1 : 2;
  const disks = tree.disks.map((disk) => {
    const { size, chunkSize, chunkCount } = writeDisk(directory, name, disk);
    const { target } = disk;
    const sums = `${target}.xxh64`;
    const shape = version === 1 ? {} : shapeOf(name, disk);
    const facts = { target, size, chunkSize, chunkCount, ...shape };
    return { ...facts, hash: 'xxh64', sums, sourceFormat: 'raw', bus: 'virtio' };
  });
  const manifest = {
    format: 'chunkmount-tree',
    version,
    name,
    uuid,
    snapshotTime: '2024-05-31T22:15:00Z',
    consistency: 'crash',
    toolVersion: '0.1.0',
    domainXml: xml === undefined ? null : `${name}.xml`,
    disks,
    extras: extras.map(({ file, kind, content }) => ({ file, kind, size: content.byteLength })),
  };
  fs.writeFileSync(path.join(directory, 'manifest.json'), `${JSON.stringify(manifest, null, 2)}\n`);
  return manifest;
}

/** Bytes that look random, the same ones for the same seed (xorshift32); runs of zeros where `zeros` says so. */
export function testBytes(
  size: number,
  seed = 1,
  zeros: readonly (readonly [start: number, end: number])[] = [],
): Buffer {
  const bytes = Buffer.allocUnsafe(Math.ceil(size / 4) * 4);
  let state = (seed * 2654435761) >>> 0 || 1;
  for (let at = 0; at < bytes.byteLength; at += 4) {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    bytes.writeInt32LE(state, at);
  }
  for (const [start, end] of zeros) bytes.fill(0, start, end);
  return bytes.subarray(0, size);
}
