import * as fs from 'node:fs';
import * as os from 'node:os';
import * as path from 'node:path';
import { run } from '../../src/host/exec.js';
import type { ImageReference } from '../../src/image/image-reference.js';
import type { Requirement } from './requirements.js';

const KIB = 1024;
const MIB = 1024 * KIB;

/** A size that no cluster size, but a sector, divides. */
export const DISK_SIZE = 3 * MIB + 1536;

export function temporaryDirectory(): string {
  return fs.mkdtempSync(path.join(fs.realpathSync(os.tmpdir()), 'cm-image-'));
}

export async function qemuImg(...args: readonly string[]): Promise<void> {
  await run('qemu-img', args);
}

/** Runs qemu-io commands, as a guest would write: `write -P 0x5a 1M 64k`, `write -z 0 4k`, `discard 0 64k`. */
export async function qemuIo(image: ImageReference, ...commands: readonly string[]): Promise<void> {
  const { stderr } = await run('qemu-io', [
    ...['-f', image.format, '-d', 'unmap'],
    ...commands.flatMap((command) => ['-c', command]),
    image.path,
  ]);
  if (stderr !== '') throw new Error(stderr);
}

/** Bytes that look random and depend on `seed` alone (xorshift32), none of them zero. */
export function noise(length: number, seed: number): Buffer {
  const bytes = Buffer.alloc(length);
  let state = seed * 2654435761 || 1;
  for (let i = 0; i < length; i++) {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    bytes[i] = state & 0xff || 1;
  }
  return bytes;
}

/** A raw file of data, holes and written zeros; the last byte is data. */
export function writeRaw(file: string, size: number, seed = 1): ImageReference {
  const fd = fs.openSync(file, 'w');
  try {
    fs.ftruncateSync(fd, size);
    const write = (bytes: Uint8Array, at: number) => {
      if (at < size) fs.writeSync(fd, bytes, 0, Math.min(bytes.length, size - at), at);
    };
    write(noise(200 * KIB, seed), 0);
    write(noise(4 * KIB, seed + 1), 512 * KIB);
    write(Buffer.alloc(256 * KIB), 768 * KIB);
    write(noise(MIB, seed + 2), 1300 * KIB);
    if (size > 0) write(noise(Math.min(size, 700), seed + 3), Math.max(0, size - 700));
  } finally {
    fs.closeSync(fd);
  }
  return { path: file, format: 'raw' };
}

/** A raw file without any data. (qemu-img create writes a first block of zeros.) */
export function hole(file: string, size: number): ImageReference {
  fs.writeFileSync(file, '');
  fs.truncateSync(file, size);
  return { path: file, format: 'raw' };
}

/** What QEMU says is on the disk. */
export async function diskContent(image: ImageReference): Promise<Buffer> {
  const directory = temporaryDirectory();
  try {
    const raw = path.join(directory, 'raw');
    await qemuImg('convert', '-f', image.format, '-O', 'raw', image.path, raw);
    return fs.readFileSync(raw);
  } finally {
    fs.rmSync(directory, { recursive: true });
  }
}

/** Converts a fresh raw file into `format`; `options` as for `qemu-img convert`. */
async function converted(
  directory: string,
  format: string,
  options: readonly string[] = [],
): Promise<ImageReference> {
  const raw = writeRaw(path.join(directory, 'source'), DISK_SIZE);
  const file = path.join(directory, `disk.${format}`);
  await qemuImg('convert', '-f', 'raw', '-O', format, ...options, raw.path, file);
  fs.rmSync(raw.path);
  return { path: file, format };
}

/** An empty image made by `qemu-img create`. */
export async function created(
  file: string,
  format: string,
  size: number,
  options: readonly string[] = [],
): Promise<ImageReference> {
  await qemuImg('create', '-q', '-f', format, ...options, file, String(size));
  return { path: file, format };
}

/** A qcow2 overlay on `base`; its size is the base's unless given. */
export async function overlay(
  file: string,
  base: ImageReference,
  size?: number,
  options: readonly string[] = [],
): Promise<ImageReference> {
  const sizes = size === undefined ? [] : [String(size)];
  await qemuImg(
    'create',
    '-q',
    '-f',
    'qcow2',
    '-F',
    base.format,
    '-b',
    base.path,
    ...options,
    file,
    ...sizes,
  );
  return { path: file, format: 'qcow2' };
}

/** Guest writes of all kinds: data, zeros, discards, within clusters and across them. */
export const GUEST_WRITES = [
  'write -P 0x5a 100k 70k',
  'write -z 64k 8k',
  'write -P 0x11 1000k 512',
  'discard 1536k 128k',
  'write -z 2M 256k',
  'write -P 0x77 3145728 1k',
];

async function written(
  image: ImageReference,
  commands: readonly string[] = GUEST_WRITES,
): Promise<ImageReference> {
  await qemuIo(image, ...commands);
  return image;
}

export interface ImageKind {
  readonly name: string;
  /** Makes such an image in an empty directory. What it needs outside of that is given back by `release`. */
  make(directory: string): Promise<ImageReference>;
}

function raw(name: string, size: number): ImageKind {
  return {
    name: `raw, ${name}`,
    make: async (directory) => writeRaw(path.join(directory, 'disk.raw'), size),
  };
}

function qcow2(name: string, options: string, commands: readonly string[] = GUEST_WRITES): ImageKind {
  return {
    name: `qcow2, ${name}`,
    make: async (directory) =>
      written(await converted(directory, 'qcow2', options === '' ? [] : options.split(' ')), commands),
  };
}

function other(format: string, options = ''): ImageKind {
  return {
    name: `${format} ${options}`.trim(),
    make: (directory) => converted(directory, format, options === '' ? [] : ['-o', options]),
  };
}

/** A chain whose lowest layer `base` makes; each of `sizes` is an overlay with writes of its own. */
function chain(
  name: string,
  base: (directory: string) => Promise<ImageReference>,
  sizes: readonly (number | undefined)[],
): ImageKind {
  return {
    name: `chain, ${name}`,
    make: async (directory) => {
      let image = await base(directory);
      for (const [level, size] of sizes.entries()) {
        image = await overlay(path.join(directory, `overlay${level}.qcow2`), image, size);
        const at = level * 300;
        await qemuIo(
          image,
          `write -P ${level + 1} ${at}k 90k`,
          `write -z ${at + 100}k 64k`,
          `discard ${at + 192}k 64k`,
        );
      }
      return image;
    },
  };
}

function dataFile(rawLayout: boolean): ImageKind {
  return {
    name: `qcow2, external data file${rawLayout ? ', raw' : ''}`,
    make: async (directory) => {
      const options = [
        '-o',
        `data_file=${path.join(directory, 'data')},data_file_raw=${rawLayout ? 'on' : 'off'}`,
      ];
      return written(await converted(directory, 'qcow2', options));
    },
  };
}

const RAW_KINDS: readonly ImageKind[] = [
  raw('data, holes and zeros', DISK_SIZE),
  ...[1, 511, 512, 513, 1_000_001].map((size) => raw(`${size} bytes`, size)),
  { name: 'raw, empty', make: async (directory) => hole(path.join(directory, 'disk.raw'), 0) },
  { name: 'raw, one hole', make: (directory) => created(path.join(directory, 'disk.raw'), 'raw', DISK_SIZE) },
  {
    name: 'raw, written zeros',
    make: async (directory) => {
      const file = path.join(directory, 'disk.raw');
      fs.writeFileSync(file, Buffer.alloc(MIB));
      return { path: file, format: 'raw' };
    },
  },
];

const QCOW2_KINDS: readonly ImageKind[] = [
  qcow2('version 3', ''),
  qcow2('version 2', '-o compat=0.10'),
  qcow2('clusters of 512 bytes', '-o cluster_size=512'),
  qcow2('clusters of 2 MiB', '-o cluster_size=2M'),
  qcow2('extended L2 entries', '-o extended_l2=on'),
  qcow2('compressed', '-c', []),
  qcow2('compressed, then written to', '-c'),
  qcow2('compressed with zstd, then written to', '-c -o compression_type=zstd'),
  qcow2('compressed, extended L2 entries', '-c -o extended_l2=on'),
  qcow2('preallocation=metadata', '-o preallocation=metadata'),
  qcow2('preallocation=falloc', '-o preallocation=falloc'),
  qcow2('preallocation=full', '-o preallocation=full'),
  qcow2('lazy refcounts', '-o lazy_refcounts=on'),
  dataFile(false),
  dataFile(true),
  { name: 'qcow2, empty', make: (directory) => created(path.join(directory, 'disk.qcow2'), 'qcow2', 0) },
  {
    name: 'qcow2, nothing written',
    make: (directory) => created(path.join(directory, 'disk.qcow2'), 'qcow2', DISK_SIZE),
  },
  {
    name: 'qcow2, preallocated and hardly written',
    make: async (directory) =>
      written(
        await created(path.join(directory, 'disk.qcow2'), 'qcow2', DISK_SIZE, [
          '-o',
          'preallocation=metadata',
        ]),
      ),
  },
  {
    name: 'qcow2, internal snapshot',
    make: async (directory) => {
      const image = await converted(directory, 'qcow2');
      await qemuImg('snapshot', '-c', 'before', image.path);
      return written(image);
    },
  },
];

const CHAIN_KINDS: readonly ImageKind[] = [
  chain('2 layers, raw base', async (d) => writeRaw(path.join(d, 'base.raw'), DISK_SIZE), [undefined]),
  chain('3 layers, raw base', async (d) => writeRaw(path.join(d, 'base.raw'), DISK_SIZE), [
    undefined,
    undefined,
  ]),
  chain('shorter raw base', async (d) => writeRaw(path.join(d, 'base.raw'), 700 * KIB), [2 * MIB]),
  chain('longer raw base', async (d) => writeRaw(path.join(d, 'base.raw'), DISK_SIZE), [MIB]),
  chain('shorter layer between', async (d) => writeRaw(path.join(d, 'base.raw'), DISK_SIZE), [MIB, 4 * MIB]),
  chain('odd-sized raw base', async (d) => writeRaw(path.join(d, 'base.raw'), 1_000_001), [2 * MIB]),
  chain('qcow2 base', (d) => converted(d, 'qcow2'), [undefined]),
  chain('compressed base', (d) => converted(d, 'qcow2', ['-c']), [undefined, 4 * MIB]),
  chain('vmdk base', (d) => converted(d, 'vmdk'), [undefined]),
  chain('base with a data file', (d) => dataFile(false).make(d), [undefined]),
  {
    name: 'chain, relative names',
    make: async (directory) => {
      writeRaw(path.join(directory, 'base.raw'), DISK_SIZE);
      const file = path.join(directory, 'overlay.qcow2');
      const args = ['create', '-q', '-f', 'qcow2', '-F', 'raw', '-b', 'base.raw', file];
      await run('qemu-img', args, { cwd: directory });
      return written({ path: file, format: 'qcow2' });
    },
  },
];

const OTHER_KINDS: readonly ImageKind[] = [
  other('vmdk'),
  other('vmdk', 'subformat=monolithicFlat'),
  other('vmdk', 'subformat=twoGbMaxExtentSparse'),
  other('vmdk', 'subformat=twoGbMaxExtentFlat'),
  other('vmdk', 'subformat=streamOptimized'),
  other('vdi'),
  other('vdi', 'static=on'),
  other('vhdx'),
  other('vhdx', 'subformat=fixed'),
  other('vpc'),
  other('vpc', 'subformat=fixed'),
  other('qed'),
  other('qcow'),
  other('parallels'),
];

/** Every kind of image file that must be readable. Block devices: see `withLoopDevice`. */
export const IMAGE_KINDS: readonly ImageKind[] = [
  ...RAW_KINDS,
  ...QCOW2_KINDS,
  ...CHAIN_KINDS,
  ...OTHER_KINDS,
];

export const loopDevices: Requirement = () =>
  fs.existsSync('/dev/loop-control') ? undefined : 'there is no /dev/loop-control: modprobe loop';

/** A loop device over `file` for as long as `use` takes. Needs root. */
export async function withLoopDevice<T>(file: string, use: (device: string) => Promise<T>): Promise<T> {
  const { stdout } = await run('losetup', ['--find', '--show', '--', file]);
  const device = stdout.trim();
  try {
    return await use(device);
  } finally {
    await run('losetup', ['--detach', device]);
  }
}
