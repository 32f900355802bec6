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

function writeDisk(
  directory: string,
  disk: TestDisk,
): { size: number; chunkSize: number; chunkCount: number } {
  const { target, content, chunkSize = 256 * KIB } = disk;
  const fd = 'image' in content ? fs.openSync(content.image, 'r') : undefined;
  const size = fd === undefined ? (content as Uint8Array).byteLength : fs.fstatSync(fd).size;
  const chunkCount = Math.ceil(size / chunkSize);
  const sums = fs.openSync(path.join(directory, `${target}.xxh64`), 'w');
  fs.mkdirSync(path.join(directory, target));
  for (let index = 0; index < chunkCount; index++) {
    if (index % 256 === 0) fs.mkdirSync(path.dirname(path.join(directory, chunkFile(target, index))));
    const start = index * chunkSize;
    const end = Math.min(start + chunkSize, size);
    let chunk: Uint8Array;
    if (fd === undefined) {
      chunk = (content as Uint8Array).subarray(start, end);
    } else {
      chunk = Buffer.alloc(end - start);
      fs.readSync(fd, chunk, 0, end - start, start);
    }
    fs.writeFileSync(path.join(directory, chunkFile(target, index)), chunk);
    fs.writeSync(sums, `${xxh64(chunk)}  ${chunkFile(target, index)}\n`);
  }
  fs.closeSync(sums);
  if (fd !== undefined) fs.closeSync(fd);
  return { size, chunkSize, chunkCount };
}

/** Makes a tree in `directory`, which must not exist. Returns the manifest as it was written. */
export function writeTree(directory: string, tree: TestTree): Record<string, unknown> {
  const { name = 'demo', uuid = null, xml, extras = [] } = tree;
  fs.mkdirSync(directory, { recursive: true });
  if (xml !== undefined) fs.writeFileSync(path.join(directory, `${name}.xml`), xml);
  for (const { file, content } of extras) fs.writeFileSync(path.join(directory, file), content);
  const disks = tree.disks.map((disk) => {
    const { size, chunkSize, chunkCount } = writeDisk(directory, disk);
    const { target } = disk;
    const sums = `${target}.xxh64`;
    return { target, size, chunkSize, chunkCount, hash: 'xxh64', sums, sourceFormat: 'raw', bus: 'virtio' };
  });
  const manifest = {
    format: 'chunkmount-tree',
    version: 1,
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
